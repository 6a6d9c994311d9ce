// The page's own script: sends dropped images and camera pictures to this server, nothing else and nowhere else.
(() => {
  const BATCH = 16, BYTES = 24 << 20; // of one request
  const say = (zone, text) => { zone.querySelector(".oc-sending").textContent = text; };

  // On a telephone the answer is below everything else. It is shown when it comes, and again where what is drawn after
  // it, in pieces, has moved it: for some seconds, or until somebody touches the page and looks where they want.
  let waiting = false, until = 0, timer = 0;
  const wait = () => { waiting = innerWidth <= 700; };
  const show = () => { if (performance.now() < until) document.querySelector("#oc-said").scrollIntoView({ block: "start" }); };
  for (const kind of ["pointerdown", "keydown", "wheel"])
    document.addEventListener(kind, () => { waiting = false; until = 0; }, { capture: true, passive: true });

  // Gradio is told of an upload through a hidden text box, as if somebody had typed the ticket.
  function hand(target, tickets) {
    const box = document.querySelector(`#${target} textarea, #${target} input`);
    const kind = box.tagName === "TEXTAREA" ? HTMLTextAreaElement : HTMLInputElement;
    Object.getOwnPropertyDescriptor(kind.prototype, "value").set.call(box, tickets);
    box.dispatchEvent(new Event("input", { bubbles: true }));
    if (target === "oc-check") wait();
  }

  async function send(zone, files) {
    const limit = Number(zone.dataset.limit);
    const taken = [...files].slice(0, limit), tickets = [];
    if (!taken.length) return;
    say(zone, zone.dataset.sending.replace("{count}", taken.length));
    let failed = "";
    for (let i = 0; i < taken.length;) {
      const form = new FormData();
      for (let size = 0, n = 0; i < taken.length && n < Math.min(BATCH, limit) && (n === 0 || size + taken[i].size < BYTES); i++, n++) {
        form.append("images", taken[i], taken[i].name || "image");
        size += taken[i].size;
      }
      try {
        const answer = await fetch(new URL("page/images", document.baseURI), { method: "POST", body: form });
        const said = await answer.json();
        if (answer.ok) tickets.push(said.ticket); else failed = said.detail || said.title;
      } catch { failed = zone.dataset.unreachable; }
    }
    const many = files.length > limit ? zone.dataset.tooMany.replace("{limit}", limit) : "";
    say(zone, [failed, many].filter(Boolean).join(" "));
    if (tickets.length) hand(zone.dataset.target, tickets.join(" "));
  }

  function stop(zone) {
    const video = zone.querySelector("video");
    for (const track of video.srcObject?.getTracks() ?? []) track.stop();
    video.srcObject = null;
    zone.querySelector(".oc-camera").hidden = true;
    zone.querySelector('[data-oc="camera"]').hidden = false;
  }

  const acts = {
    appearance: () => document.body.classList.toggle("dark"),
    camera: async (button, zone) => {
      try {
        const video = zone.querySelector("video");
        video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
        await video.play();
        zone.querySelector(".oc-camera").hidden = false;
        button.hidden = true;
        zone.querySelector('[data-oc="shoot"]').focus();
      } catch { say(zone, zone.dataset.noCamera); }
    },
    shoot: (button, zone) => {
      const video = zone.querySelector("video"), canvas = document.createElement("canvas");
      canvas.width = video.videoWidth;
      canvas.height = video.videoHeight;
      canvas.getContext("2d").drawImage(video, 0, 0);
      const name = `camera-${new Date().toISOString().slice(11, 19).replaceAll(":", "")}.png`;
      canvas.toBlob((blob) => send(zone, [new File([blob], name, { type: "image/png" })]), "image/png");
    },
    close: (button, zone) => { stop(zone); zone.querySelector('[data-oc="camera"]').focus(); },
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-oc]");
    if (button) acts[button.dataset.oc](button, button.closest(".oc-zone"));
    if (event.target.closest?.("#oc-judge")) wait();
  });
  document.addEventListener("change", (event) => {
    if (!event.target.matches?.('.oc-zone input[type="file"]')) return;
    send(event.target.closest(".oc-zone"), [...event.target.files]);
    event.target.value = "";
  });

  // Files may be dropped anywhere; outside a zone they are for the first one.
  const carries = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    document.body.classList.add("oc-dragging");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("oc-dragging");
  });
  document.addEventListener("drop", (event) => {
    document.body.classList.remove("oc-dragging");
    if (!carries(event)) return;
    event.preventDefault();
    send(event.target.closest?.(".oc-zone") ?? document.querySelector(".oc-zone"), event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData?.files.length) send(document.querySelector(".oc-zone"), event.clipboardData.files);
  });

  // Browsers move the thumb when its ends move, and Gradio does not put it back.
  const place = () => {
    const range = document.querySelector("#oc-threshold input[type=range]");
    const number = document.querySelector("#oc-threshold input[type=number]");
    if (range && number?.value && document.activeElement !== range) range.value = number.value;
  };

  // The document's language is that of the texts.
  new MutationObserver((changes) => {
    if (changes.some((one) => one.target.closest?.("#oc-histogram"))) setTimeout(place, 100);
    const language = document.querySelector(".oc-head")?.lang;
    if (language && document.documentElement.lang !== language) document.documentElement.lang = language;
    if (waiting && changes.some((one) => one.target.closest?.("#oc-said"))) {
      waiting = false;
      until = performance.now() + 5000;
    }
    if (performance.now() < until) {
      clearTimeout(timer);
      timer = setTimeout(show, 100);
    }
  }).observe(document.documentElement, { subtree: true, childList: true });
})();
