"""ONNX files as a format needs them: 8-bit weights, and scores by onnxruntime. PyTorch is not needed here."""
from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional

import numpy as np

from essence_kd.export.format import runtime
from essence_kd.io.errors import UserError

INT8 = ("dynamic", "static")
FORM = {None: "conv", "dynamic": "matmul", "static": "conv"}  # of the network, by the kind of int8 weights
_PIECE, _UTTERANCES = 250, 60  # frames of an utterance and utterances that static weights are calibrated with
_SHORT = 16  # numbers from which on a vector is stored in 16 bits
_QUANTISED = ["MatMul", "Gemm", "Conv"]


def session(path, threads: int = 1):
    """An onnxruntime session on the CPU. Raises UserError where onnxruntime or the file cannot be loaded."""
    ort = runtime("onnxruntime", "onnxruntime", str(path))
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of many kinds, all onnxruntime's own
        raise UserError(f"{path}: onnxruntime cannot load it ({' '.join(str(error).split())[:200]}): export it "
                        "again") from None


def quantised(data: bytes, kind: str, calibration: Iterable[Dict[str, np.ndarray]] = ()) -> bytes:
    """A model file whose matrix products and convolutions have 8-bit weights, a scale for each output channel.

    kind: ``dynamic`` (what they are multiplied with is rounded by its own range at every call) or ``static`` (by the
    range that it had for ``calibration``, inputs of the model). The same bytes at every call.
    """
    onnx = runtime("onnx", "onnx", "--int8")
    quantization = runtime("onnxruntime.quantization", "onnxruntime", "--int8")
    with tempfile.TemporaryDirectory(prefix="essence-int8-") as folder, _quiet():
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        before.write_bytes(data)
        options = {"per_channel": True, "op_types_to_quantize": _QUANTISED, "weight_type": quantization.QuantType.QInt8}
        if kind == "dynamic":
            quantization.quantize_dynamic(str(before), str(after), **options)
        else:
            reader = _Reader(calibration)
            quantization.quantize_static(str(before), str(after), reader, **options,
                                         quant_format=quantization.QuantFormat.QDQ,
                                         activation_type=quantization.QuantType.QUInt8,
                                         calibrate_method=quantization.CalibrationMethod.Percentile)
        return _smaller(onnx.load(str(after))).SerializeToString(deterministic=True)


def _smaller(model):
    """The same model without what takes bytes beside 8-bit weights: equal constants stand once, vectors of float32 are
    stored in 16 bits (less exact by a factor of up to 1 + 2^-11, which is little beside weights of 8 bits), names are
    short. When the file is loaded, they become float32 again."""
    from onnx import TensorProto, helper, numpy_helper

    graph, named, places, casts = model.graph, {}, {}, []
    kept = {value.name for value in (*graph.input, *graph.output)}
    for tensor in list(graph.initializer):
        array = numpy_helper.to_array(tensor)
        place = places.setdefault((array.dtype.str, array.shape, array.tobytes()), f"c{len(places)}")
        graph.initializer.remove(tensor)
        if place not in named.values():
            with np.errstate(over="ignore"):
                short = array.astype(np.float16) if array.dtype == np.float32 and array.size >= _SHORT else array
            if short is not array and np.allclose(short.astype(np.float32), array, rtol=2 ** -10, atol=1e-6):
                graph.initializer.append(numpy_helper.from_array(short, f"{place}h"))
                casts.append(helper.make_node("Cast", [f"{place}h"], [place], to=TensorProto.FLOAT))
            else:
                graph.initializer.append(numpy_helper.from_array(array, place))
        named[tensor.name] = place
    for node in graph.node:
        node.name = ""
        for name in node.output:
            named[name] = name if name in kept or not name else f"v{len(named)}"
    for node in graph.node:
        node.input[:] = [named.get(name, name) for name in node.input]
        node.output[:] = [named[name] if name else name for name in node.output]
    nodes = [*casts, *graph.node]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return model


@contextlib.contextmanager
def _quiet():
    """onnxruntime's quantisation tells its progress and advice; neither means anything here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


class _Reader:
    """What onnxruntime's calibration asks for inputs."""

    def __init__(self, inputs: Iterable[Dict[str, np.ndarray]]) -> None:
        self._inputs = iter(inputs)

    def get_next(self) -> Optional[Dict[str, np.ndarray]]:
        """The next input, None after the last."""
        return next(self._inputs, None)


def calibration_features(data_dir, feat_dim: int) -> List[np.ndarray]:
    """Features float32 (250, F) of utterances that lie evenly in a data directory, for static weights.

    All have one length, which onnxruntime's calibration by percentiles asks for: longer utterances are cut and shorter
    ones repeated. Raises UserError for a directory without features, and for those of another front end.
    """
    from essence_kd.io.specifiers import read_scp
    from essence_kd.io.tables import MatrixPlaces

    scp, places, matrices = Path(data_dir) / "feats.scp", [], MatrixPlaces()
    for _, utt, file, span in read_scp(str(scp)):
        places.append((utt, file if span is None else f"{file}[{span}]"))
    if not places:
        raise UserError(f"{scp}: no utterances to calibrate with")
    chosen, feats = places[::max(1, len(places) // _UTTERANCES)][:_UTTERANCES], []
    for utt, place in chosen:
        matrix = np.asarray(matrices.read(utt, place), np.float32)
        if matrix.ndim != 2 or matrix.shape[1] != feat_dim:
            raise UserError(f"{scp}: utterance {utt} has features of {matrix.shape[-1]} bins, but the model takes "
                            f"{feat_dim}")
        if len(matrix):
            feats.append(np.resize(matrix, (_PIECE, feat_dim)))
    return feats


def scorer(path, threads: int = 1) -> Callable[[np.ndarray], np.ndarray]:
    """What answers features float32 (T, F) with scores float32 (R, C), by a file of the format ``onnx``."""
    running = session(path, threads)
    return lambda feats: running.run(["scores"], {"feats": feats[None]})[0][0]
