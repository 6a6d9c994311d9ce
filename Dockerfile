# The guard as a service on a CPU; docs/serve.md says how to build and run it.
FROM python:3.11-slim AS build
ARG EXTRAS=serve
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY src src
RUN python -m venv /opt/outclass
RUN /opt/outclass/bin/pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"

FROM python:3.11-slim
COPY --from=build /opt/outclass /opt/outclass
# No home and nothing that has to be written: the root file system may be read-only.
ENV PATH=/opt/outclass/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OUTCLASS_CACHE=/tmp/outclass
# ONNX Runtime from 1.29 on would report to its makers.
ENV ORT_DISABLE_TELEMETRY=1
WORKDIR /guard
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s CMD ["python", "-c", "from http.client import HTTPConnection as To; it = To('127.0.0.1', 8000, timeout=4); it.request('GET', '/healthz'); raise SystemExit(it.getresponse().status != 200)"]
# Options behind the image's name in `docker run` take the place of CMD.
ENTRYPOINT ["outclass", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--guard", "my.guard"]
