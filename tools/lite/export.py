"""Backbones and heads -> ``image.onnx`` and ``text.onnx``, in int8 (shipped) or fp32 (to compare)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

GRID = 9  # the last feature map is 9 x 9
BLOCK = 64  # int8 weights that share a scale; a scale a column lost 0.003 of text cosine, blocks 0.0007


def to_int8(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 with one float32 scale along ``axis``; weight = int8 * scale."""
    scale = np.maximum(np.abs(weight).max(axis, keepdims=True) / 127, 1e-12).astype(np.float32)
    return np.clip(np.round(weight / scale), -127, 127).astype(np.int8), scale


@dataclass(frozen=True)
class Head:
    """Everything that is trained, as plain arrays; d = vector length, h = hidden units.

    Attributes:
        skip, skip_bias: (1280, d), (d,): the linear part of the image head.
        up, up_bias, down: (1280, h), (h,), (h, d): its hidden layer.
        classes, classes_bias: (1280, 1000), (1000,): the ImageNet classifier, sharpened.
        voice: (1000, d): one text vector a class, already multiplied by the share of the classifier's voice.
        text, text_bias: (384, d), (d,): the text head; the bias holds the centre.
        scale: multiplier of cosines.
    """

    skip: np.ndarray
    skip_bias: np.ndarray
    up: np.ndarray
    up_bias: np.ndarray
    down: np.ndarray
    classes: np.ndarray
    classes_bias: np.ndarray
    voice: np.ndarray
    text: np.ndarray
    text_bias: np.ndarray
    scale: float

    def save(self, path: Path) -> None:
        np.savez(path, **self.__dict__)

    @classmethod
    def load(cls, path: Path) -> Head:
        with np.load(path) as data:
            arrays = {name: data[name] for name in data.files}
        return cls(**{**arrays, "scale": float(arrays["scale"])})


class _Graph:
    """Appends nodes to an ONNX model; weight matrices go in as int8 with a scale a column, or as they are."""

    def __init__(self, model: onnx.ModelProto, int8: bool) -> None:
        self.graph, self.int8, self.count = model.graph, int8, 0
        self.nodes = model.graph.node  # where new nodes go

    def constant(self, array: np.ndarray) -> str:
        self.count += 1
        name = f"lite_{self.count}"
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: object) -> str:
        self.count += 1
        output = output or f"lite_{kind}_{self.count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=f"n_{output}", **attributes))
        return output

    @contextmanager
    def branch(self) -> Iterator[list[onnx.NodeProto]]:
        """Collect the nodes made inside as the body of an ``If``; constants stay in the main graph."""
        main, self.nodes = self.nodes, []
        yield self.nodes
        self.nodes = main

    def matrix(self, weight: np.ndarray) -> str:
        """(rows, columns) -> its name. As int8 it is Cast and Mul of constants, folded when a session starts."""
        weight = weight.astype(np.float32)
        if not self.int8:
            return self.constant(weight)
        rows, columns = weight.shape
        block = BLOCK if rows % BLOCK == 0 else rows
        small, scale = to_int8(weight.reshape(rows // block, block, columns), axis=1)
        full = self.node("Mul", self.node("Cast", self.constant(small), to=TensorProto.FLOAT), self.constant(scale))
        return self.node("Reshape", full, self.constant(np.array([rows, columns], np.int64)))

    def rows_of(self, table: np.ndarray, ids: str, output: str) -> None:
        """Gather rows of an int8 table (rows, columns), then restore them: ids (n, L) -> (n, L, columns)."""
        rows, columns = table.shape
        small, scale = to_int8(table.reshape(rows, columns // BLOCK, BLOCK), axis=2)
        found = self.node("Cast", self.node("Gather", self.constant(small), ids), to=TensorProto.FLOAT)
        scaled = self.node("Mul", found, self.node("Gather", self.constant(scale), ids))
        self.node("Reshape", scaled, self.constant(np.array([0, 0, columns], np.int64)), output=output)

    def unit(self, rows: str) -> str:
        """Divide each row by its length."""
        length = self.node("ReduceL2", rows, axes=[-1], keepdims=1)
        return self.node("Div", rows, self.node("Max", length, self.constant(np.float32(1e-12))))


def export_image(backbone: Path, head: Head, path: Path, int8: bool) -> None:
    """Add head and classifier's voice to the backbone: ``pixels`` -> ``vectors`` (n, d), ``patches`` (n, 81, d).

    ``patches`` is (0, 81, d) unless the optional input ``with_patches``, a bool (), is True.
    """
    model = onnx.load(backbone)
    graph = _Graph(model, int8)
    hidden, dim = head.down.shape
    first = graph.matrix(np.concatenate([head.skip, head.up, head.classes], 1))
    first_bias = graph.constant(np.concatenate([head.skip_bias, head.up_bias, head.classes_bias]).astype(np.float32))
    down, voice = graph.matrix(head.down), graph.matrix(head.voice)
    sizes = graph.constant(np.array([dim, hidden, 1000], np.int64))
    half, root = graph.constant(np.float32(0.5)), graph.constant(np.float32(np.sqrt(2)))
    one = graph.constant(np.float32(1))

    def vectors(features: str) -> str:
        """(rows, 1280) -> (rows, d): unit(unit(skip + MLP) + probabilities x voice)."""
        mixed = graph.node("Add", graph.node("MatMul", features, first), first_bias)
        parts = [f"{mixed}_{part}" for part in ("skip", "up", "classes")]
        graph.nodes.append(helper.make_node("Split", [mixed, sizes], parts, axis=1, name=f"n_{mixed}_split"))
        bell = graph.node("Add", graph.node("Erf", graph.node("Div", parts[1], root)), one)
        active = graph.node("Mul", graph.node("Mul", parts[1], bell), half)
        seen = graph.unit(graph.node("Add", parts[0], graph.node("MatMul", active, down)))
        heard = graph.node("MatMul", graph.node("Softmax", parts[2], axis=1), voice)
        return graph.unit(graph.node("Add", seen, heard))

    pooled = graph.node("ReduceMean", "map", axes=[2, 3], keepdims=0)
    graph.node("Identity", vectors(pooled), output="vectors")
    # onnxruntime computes every output of a graph, asked for or not, and local vectors cost 40 % more time: so
    # they sit in an If, whose condition is an input with a default.
    with graph.branch() as local:
        places = graph.node("Transpose", "map", perm=[0, 2, 3, 1])
        rows = graph.node("Reshape", places, graph.constant(np.array([-1, 1280], np.int64)))
        shape = graph.constant(np.array([-1, GRID * GRID, dim], np.int64))
        graph.node("Reshape", vectors(rows), shape, output="patches_local")
    with graph.branch() as nothing:
        graph.node("Identity", graph.constant(np.zeros((0, GRID * GRID, dim), np.float32)), output="patches_none")
    bodies = [
        helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])
        for nodes, name in ((local, "patches_local"), (nothing, "patches_none"))
    ]
    asked = helper.make_tensor_value_info("with_patches", TensorProto.BOOL, [])
    model.graph.input.append(asked)
    model.graph.initializer.append(numpy_helper.from_array(np.array(False), "with_patches"))
    graph.node("If", "with_patches", output="patches", then_branch=bodies[0], else_branch=bodies[1])
    del model.graph.output[:]
    model.graph.output.extend(
        [
            helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["n", dim]),
            helper.make_tensor_value_info("patches", TensorProto.FLOAT, ["m", GRID * GRID, dim]),
        ]
    )
    _save(model, path)


def export_text(backbone: Path, head: Head, path: Path, int8: bool) -> None:
    """Add the text head: ``input_ids``, ``attention_mask`` -> ``vectors`` (n, d); int8 shrinks weights only."""
    model = onnx.load(backbone)
    graph = _Graph(model, int8)
    if int8:
        _shrink_weights(model, graph)
    moved = graph.node("MatMul", "sentence", graph.matrix(head.text))
    graph.node("Identity", graph.unit(graph.node("Add", moved, graph.constant(head.text_bias))), output="vectors")
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["n", head.text.shape[1]]))
    _save(model, path)


def _shrink_weights(model: onnx.ModelProto, graph: _Graph) -> None:
    """Replace the fp32 matrices of MatMul and the word table of Gather."""
    tables = {item.name: item for item in model.graph.initializer}
    nodes = list(model.graph.node)
    del model.graph.node[:]
    done: dict[str, str] = {}
    for node in nodes:
        if node.op_type == "MatMul" and node.input[1] in tables:
            name = node.input[1]
            if name not in done:
                done[name] = graph.matrix(numpy_helper.to_array(tables[name]))
            node.input[1] = done[name]
        if node.op_type == "Gather" and node.input[0] in tables and len(node.input) == 2:
            table = numpy_helper.to_array(tables[node.input[0]])
            if table.ndim == 2 and len(table) > 1000:
                graph.rows_of(table, node.input[1], node.output[0])
                done[node.input[0]] = node.output[0]
                continue
        model.graph.node.append(node)
    kept = [item for item in model.graph.initializer if item.name not in done]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _save(model: onnx.ModelProto, path: Path) -> None:
    model.producer_name, model.producer_version, model.doc_string = "outclass tools.lite", "", ""
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    fresh = path.with_suffix(".tmp")
    onnx.save(model, str(fresh))
    fresh.replace(path)
