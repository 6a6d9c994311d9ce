"""Two torch towers -> ``image.onnx`` and ``text.onnx`` as ``encoders/onnx.py`` runs them; float32, or static int8."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from outclass import __version__
from outclass.encoders.base import Pixels
from outclass.encoders.torch_towers import ImageTower, TextTower

OPSET = 17
INLINE = 1_800_000_000  # bytes of weights; a file of protobuf ends at 2 GiB, so more of them lie beside the graph
CALIBRATION_RUN = 8  # images
Run = tuple[torch.Tensor, torch.Tensor]  # ids and mask, (n, L) int64 each
PRODUCTS = ["MatMul"]  # what int8 makes quick; the rest of a transformer stays float32


def write_image(tower: ImageTower, size: int, path: Path, calibration: Pixels | None = None) -> None:
    """Write the image tower: ``pixels`` (n, size, size, 3) uint8 -> ``vectors``, and ``patches`` where it has places.

    ONNX Runtime computes every output of a graph, asked for or not. So the nodes that only ``patches`` needs sit in an
    ``If`` whose condition is the optional input ``with_patches``; without it ``patches`` has no rows.

    Args:
        tower: float32, on the CPU.
        size: side of an image, pixels.
        path: of the file; weights that do not fit into it go to ``path`` + ``.data``.
        calibration: (n, size, size, 3) uint8 photographs: matrix products in int8, per channel, with ranges fixed by
            them, so that no vector depends on its batch; None = float32. Local vectors keep float arithmetic.
    """
    pixels = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    outputs = ["vectors"] if tower.grid is None else ["vectors", "patches"]
    with tempfile.TemporaryDirectory() as folder:
        model = _traced(tower if tower.grid is None else _Both(tower), (pixels,), ["pixels"], outputs, (0,), folder)
        local, weights = _cut(model) if tower.grid else ([], {})
        if calibration is not None:
            model = _to_int8(model, calibration, Path(folder))
        if local:
            with torch.no_grad():
                shape = tower(pixels[:1], with_patches=True)[1].shape
            _graft(model, local, weights, shape[1:])
        _save(model, path)


def write_text(
    tower: TextTower, example: Run, other: Run, path: Path, context: int | None = None, pad: int = 0
) -> bool:
    """Write the text tower, float32: ``input_ids``, ``attention_mask`` (n, L) int64 -> ``vectors``.

    Args:
        tower: float32, on the CPU.
        example: ids and mask of some texts, (2, L) int64 each.
        other: those of another number of texts of another length, on which the graph is tried.
        path: of the file.
        context: the L of all texts, padded with ``pad``; None = any L.

    Returns:
        Whether the graph gives the vectors of the tower; else nothing is written. Attention of torch's own kind, which
        open_clip uses, keeps the L of the example.
    """
    names = ["input_ids", "attention_mask"]
    if context is not None:
        example, other = _padded(example, context, pad), _padded(other, context, pad)
    with tempfile.TemporaryDirectory() as folder:
        axes = (0, 1) if context is None else (0,)
        model = _traced(tower, example, names, ["vectors"], axes, folder)
        used = {item.name for item in model.graph.input}
        for name in names:
            if name not in used:  # SigLIP sees its padding and needs no mask, but all text graphs are called alike
                model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, ["n", None]))
        tried = Path(folder) / path.name
        _save(model, tried)
        good = _agrees(tried, tower, dict(zip(names, other, strict=True)))
        if good:
            for file in tried.parent.glob(f"{path.name}*"):
                shutil.move(file, path.with_name(file.name))
    return good


def _padded(run: Run, context: int, pad: int) -> Run:
    missing = (0, context - run[0].shape[1])
    return nn.functional.pad(run[0], missing, value=pad), nn.functional.pad(run[1], missing)


def _agrees(path: Path, tower: TextTower, feeds: dict[str, torch.Tensor]) -> bool:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a failure is an answer here
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    try:
        vectors = session.run(["vectors"], {name: part.numpy() for name, part in feeds.items()})[0]
    except Exception:  # onnxruntime's own kinds
        return False
    with torch.no_grad():
        expected = tower(*feeds.values()).numpy()
    return bool(vectors.shape == expected.shape and abs(vectors - expected).max() < 1e-3)


class _Both(nn.Module):  # type: ignore[misc]
    """Image vectors by the plain way and local vectors beside them; what the two share is merged in the graph."""

    def __init__(self, tower: ImageTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.tower(pixels), self.tower(pixels, with_patches=True)[1]


def _traced(
    module: nn.Module,
    example: tuple[torch.Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    free: tuple[int, ...],
    folder: str,
) -> onnx.ModelProto:
    """The graph of a module, constants folded and equal nodes merged; ``free`` axes of the inputs may have any size."""
    traced = Path(folder) / f"{outputs[-1]}.onnx"
    axes = {name: {axis: "nL"[axis] for axis in free} for name in inputs} | {name: {0: "n"} for name in outputs}
    fast = torch.backends.mha.get_fastpath_enabled()  # one fused step that has no ONNX counterpart
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # what the tracer cannot prove; the parity report checks the result
            torch.onnx.export(
                module.eval(), example, str(traced), opset_version=OPSET, dynamo=False,
                input_names=inputs, output_names=outputs, dynamic_axes=axes,
            )  # fmt: skip
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return _simplified(traced)


def _simplified(path: Path) -> onnx.ModelProto:
    """ONNX Runtime's basic rewriting, which keeps to standard operators."""
    import onnxruntime

    simple = path.with_name(f"simple-{path.name}")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(simple)
    options.log_severity_level = 3
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{simple.name}.data")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    model = onnx.load(str(simple))
    used = {node.domain for node in model.graph.node}
    standard = [item for item in model.opset_import if item.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(standard)
    return model


def _cut(model: onnx.ModelProto) -> tuple[list[onnx.NodeProto], dict[str, onnx.TensorProto]]:
    """Take the output ``patches`` out of a graph, with the nodes that only it needs and copies of their weights."""
    maker = {output: node for node in model.graph.node for output in node.output}
    needed: set[str] = set()
    waiting = ["vectors"]
    while waiting:
        node = maker.get(waiting.pop())
        if node is not None and node.output[0] not in needed:
            needed.add(node.output[0])
            waiting += node.input
    kept = [node for node in model.graph.node if node.output[0] in needed]
    local = [node for node in model.graph.node if node.output[0] not in needed]
    del model.graph.node[:], model.graph.output[1:]
    model.graph.node.extend(kept)
    read = {name for node in local for name in node.input}
    weights = {item.name: _copy(item) for item in model.graph.initializer if item.name in read}
    read = {name for node in kept for name in node.input}
    rest = [item for item in model.graph.initializer if item.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(rest)
    return local, weights


def _copy(weight: onnx.TensorProto) -> onnx.TensorProto:
    fresh = onnx.TensorProto()
    fresh.CopyFrom(weight)
    return fresh


def _graft(
    model: onnx.ModelProto, local: list[onnx.NodeProto], weights: dict[str, onnx.TensorProto], shape: Sequence[int]
) -> None:
    """Put the nodes of ``patches`` back as one branch of an ``If``; (p, d) is the shape of one image's patches.

    A weight that is int8 by now is read as that and multiplied in float, instead of being stored a second time.
    """
    here = {item.name for item in model.graph.initializer}
    makers = {node.input[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    body: list[onnx.NodeProto] = []
    made: set[str] = set()
    for node in local:
        for place, name in enumerate(node.input):
            if name in here or name not in weights:
                continue
            small = makers.get(f"{name}_quantized")
            if small is None:
                model.graph.initializer.append(weights[name])
                here.add(name)
                continue
            if name not in made:  # not by DequantizeLinear: onnxruntime would make a product in int8 of it, and fail
                body.append(helper.make_node("Cast", [small.input[0]], [f"{name}_cast"], to=TensorProto.FLOAT))
                body.append(helper.make_node("Mul", [f"{name}_cast", small.input[1]], [f"{name}_local"]))
                made.add(name)
            node.input[place] = f"{name}_local"
        body.append(node)
    body.append(helper.make_node("Identity", ["patches"], ["patches_local"]))
    for node in body:  # the name is the output of the whole from now on
        for names in (node.input, node.output):
            names[:] = ["patches_made" if name == "patches" else name for name in names]
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((0, *shape), np.float32), "no_patches"))
    branches = [
        helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])
        for nodes, name in (
            (body, "patches_local"),
            ([helper.make_node("Identity", ["no_patches"], ["patches_none"])], "patches_none"),
        )
    ]
    model.graph.input.append(helper.make_tensor_value_info("with_patches", TensorProto.BOOL, []))
    model.graph.initializer.append(numpy_helper.from_array(np.array(False), "with_patches"))
    choice = helper.make_node("If", ["with_patches"], ["patches"], then_branch=branches[0], else_branch=branches[1])
    model.graph.node.append(choice)
    model.graph.output.append(helper.make_tensor_value_info("patches", TensorProto.FLOAT, ["m", *shape]))


def _to_int8(model: onnx.ModelProto, photographs: Pixels, folder: Path) -> onnx.ModelProto:
    """Static int8 of the products with weights: QDQ, a scale a column of weights, ranges seen on the photographs."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest: Iterator[int] = iter(range(0, len(photographs), CALIBRATION_RUN))

        def get_next(self) -> dict[str, Any] | None:
            start = next(self.rest, None)
            return None if start is None else {"pixels": photographs[start : start + CALIBRATION_RUN]}

    add_pre_process_metadata(model)  # it was simplified: no advice to do so is printed
    exact, small = folder / "exact.onnx", folder / "int8.onnx"
    large = _save(model, exact)
    quantize_static(
        str(exact),
        str(small),
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=PRODUCTS,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        use_external_data_format=large,
        # Sums stay float: what follows a product is added to or normalised, and rounding it twice gains nothing.
        extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": PRODUCTS},
    )
    return onnx.load(str(small))


def _save(model: onnx.ModelProto, path: Path) -> bool:
    """Write a model; whether its weights went to a file of their own, because they would not fit."""
    model.producer_name, model.producer_version, model.doc_string = "outclass", __version__, ""
    del model.graph.value_info[:]
    large = sum(len(item.raw_data) for item in model.graph.initializer) > INLINE
    if large:
        onnx.save(model, str(path), save_as_external_data=True, location=f"{path.name}.data")
    else:
        onnx.save(model, str(path))
    onnx.checker.check_model(str(path))
    return large
