"""ONNX: a module as one file, compared with PyTorch by onnxruntime before anybody uses it."""

import copy
import logging
import math
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainkit.errors import ConfigError
from trainkit.export.export import Export
from trainkit.ops import mode
from trainkit.version import __version__

OPSET = 20
"""Quantization by onnxruntime 1.31 writes invalid graphs of attention at opset 23."""
TOLERANCE = 1e-5
_MAX_INLINE_BYTES = 2_000_000_000  # protobuf holds less than 2 GiB; the weights are in NAME.data then
_TRT_LIMIT_S = 900
_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}

Predict = Callable[[Mapping[str, Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Dynamic:
    """A dimension of an input that may have any size in a range.

    Args:
        name: dimensions with one name have one size.
        most: the largest size that is named for TensorRT; and the largest allowed one, if `is_limit`.
        is_limit: whether the module takes no more.
    """

    name: str
    most: int
    is_limit: bool = False


@dataclass(frozen=True, kw_only=True)
class OnnxModel:
    """What is exported: a module, how it is called, and how it is measured.

    Args:
        module: called with the inputs in their order; returns a tensor, or a tuple of them.
        inputs: examples by name; dynamic sizes of 2 or more.
        outputs: names.
        dynamic: by input, its dynamic dimensions.
        checks: other inputs, on which onnxruntime must give what PyTorch gives.
        metadata: text by name, which the file holds.
        measure: a metric without units on held-out data, of a function from inputs to outputs, at most 1, which is
            best; None: there is none, and int8 is refused.
        measured: its name.
        calibration: inputs from held-out data, for static int8.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: Mapping[str, Mapping[int, Dynamic]]
    checks: Iterable[Mapping[str, Tensor]]
    metadata: Mapping[str, str] = field(default_factory=dict)
    measure: Callable[[Predict], float] | None = None
    measured: str = "accuracy"
    calibration: Callable[[], Iterable[Mapping[str, Tensor]]] | None = None


@dataclass(frozen=True, kw_only=True)
class Written:
    """What is known of a file that was written.

    Args:
        difference: the largest to PyTorch's outputs, over the largest of these; before int8.
        inputs: name, dtype and shape of each; sizes that may vary are names.
        outputs: the same.
        measured: of int8, the metric's name, and its value before and after.
    """

    difference: float
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    measured: dict[str, Any] | None = None


def write_onnx(
    model: OnnxModel, export: Export, *, max_inline_bytes: int = _MAX_INLINE_BYTES
) -> Generator[str, None, Written]:
    """Writes an ONNX file by PyTorch's exporter, and checks it.

    Args:
        model: what is exported; a copy in fp32 is.
        export: where to, and whether as int8.
        max_inline_bytes: of weights in the file itself; more of them are in NAME.data beside it.

    Yields:
        Lines for the user: the difference to PyTorch, the accuracy of int8, and the command for TensorRT.

    Returns:
        What is known of the file: `written = yield from write_onnx(...)`.

    Raises:
        ConfigError: where packages are missing, the module cannot be exported, the file differs from PyTorch by more
            than 1e-5 of the largest output (or four times PyTorch's own rounding, where that is more), or int8 loses
            more than `export.max_drop`.
    """
    _require_packages()
    if export.int8 is not None and (model.measure is None or model.calibration is None):
        raise ConfigError(f"--int8 {export.int8}: this model has no accuracy to compare; leave it out")
    module = copy.deepcopy(model.module).float().cpu().eval().requires_grad_(False)
    num_bytes = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    is_large = num_bytes > max_inline_bytes
    with tempfile.TemporaryDirectory(dir=export.target.parent) as aside:
        plain = Path(aside) / export.target.name if export.int8 is not None else export.target
        _write(module, model, export, plain, external=is_large)
        difference, compared = _compared(module, model, plain)
        yield compared
        measured = None
        if export.int8 is not None:
            measured = yield from _quantized(model, export, plain, external=is_large)
    others = sorted(path.name for path in export.target.parent.iterdir() if path != export.target)
    beside = f", with {', '.join(others)} beside it" if others else ""
    yield f"ONNX opset {OPSET}, step {export.run.step:,}: {export.destination}{beside}"
    if export.int8 is None:  # TensorRT reads neither scales that are computed nor zero points other than 0
        yield from _tensor_rt(model, export)
    return _written(export.target, difference, measured)


def _written(path: Path, difference: float, measured: dict[str, Any] | None) -> Written:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs, outputs = (
        [{"name": one.name, "dtype": _DTYPES[one.type], "shape": list(one.shape)} for one in ends]
        for ends in (session.get_inputs(), session.get_outputs())
    )
    return Written(difference=difference, inputs=inputs, outputs=outputs, measured=measured)


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"--to onnx needs {error.name}: pip install 'trainkit[onnx]'") from error


def _write(module: nn.Module, model: OnnxModel, export: Export, path: Path, *, external: bool) -> None:
    dims = {
        dynamic.name: torch.export.Dim(dynamic.name, max=dynamic.most if dynamic.is_limit else None)
        for axes in model.dynamic.values()
        for dynamic in axes.values()
    }
    shapes = tuple(
        {axis: dims[dynamic.name] for axis, dynamic in model.dynamic.get(name, {}).items()} for name in model.inputs
    )
    try:
        with _quietly(), _reference_ops(), _one_tf32_setting(), torch.no_grad():
            program = torch.onnx.export(
                module,
                tuple(model.inputs.values()),
                input_names=list(model.inputs),
                output_names=list(model.outputs),
                dynamic_shapes=shapes,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        reason = str(error.__cause__ or error)  # the exporter's own text is advice
        raise ConfigError(f"the module cannot be exported: {' '.join(reason.split())[:400]}") from error
    assert program is not None
    versions = {"trainkit": __version__, "torch": torch.__version__}
    run = {"run": export.run.name, "step": str(export.run.step), "samples": str(export.run.position)}
    program.model.metadata_props.update({**versions, **run, **model.metadata})
    program.model.producer_name, program.model.producer_version = "trainkit", __version__
    program.save(path, external_data=external)


def _compared(module: nn.Module, model: OnnxModel, path: Path) -> tuple[float, str]:
    """The largest difference of onnxruntime from PyTorch, and a line on it. Raises ConfigError for too large a one."""
    predict, worst, count, own = predictor(path), 0.0, 0, 0.0
    for inputs in (model.inputs, *model.checks):
        expected = _called(module, inputs)
        difference, allowed = _difference(predict(inputs), expected), TOLERANCE
        if not difference <= TOLERANCE:
            # Where PyTorch's own rounding is larger than the tolerance, no other program can be nearer.
            rounding = _rounding(module, inputs, expected)
            allowed, own = max(TOLERANCE, 4 * rounding), max(own, rounding)
        if not difference <= allowed:
            shapes = ", ".join(f"{name} {[*value.shape]}" for name, value in inputs.items())
            raise ConfigError(
                f"onnxruntime differs from PyTorch by {difference:.2g} of the largest output for {shapes}, and "
                f"{allowed:.2g} is allowed: nothing was written"
            )
        worst, count = max(worst, difference), count + 1
    beside = f" (PyTorch's fp32 from its float64: {own:.2g})" if own else ""
    at_most = f"by {worst:.2g} of the largest output at most{beside}"
    return worst, f"onnxruntime differs from PyTorch {at_most}, on {count} batches"


def _called(module: nn.Module, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    with _reference_ops(), torch.no_grad():
        found = module(*inputs.values())
    return list(found) if isinstance(found, tuple) else [found]


def _rounding(module: nn.Module, inputs: Mapping[str, Tensor], single: Sequence[Tensor]) -> float:
    """The difference of PyTorch's fp32 from its float64."""
    wide = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    return _difference(single, _called(copy.deepcopy(module).double(), wide))


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference over the largest expected number, of the output where that is most; NaN where one is."""
    worst = 0.0
    for own, theirs in zip(found, expected, strict=True):
        if own.shape != theirs.shape:
            return math.inf
        if own.numel():
            relative = float((own - theirs).abs().max()) / max(float(theirs.abs().max()), 1e-30)
            worst = relative if math.isnan(relative) else max(worst, relative)
        if math.isnan(worst):
            return worst
    return worst


def predictor(path: Path) -> Predict:
    """Returns a function that computes the outputs of an ONNX file by onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def predict(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        return [torch.from_numpy(value) for value in found]

    return predict


# -- int8 --------------------------------------------------------------------------------------------------------------


def _quantized(
    model: OnnxModel, export: Export, plain: Path, *, external: bool
) -> Generator[str, None, dict[str, Any]]:
    """Writes the int8 form of the file `plain`. Raises ConfigError where it loses too much."""
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    assert model.measure is not None and model.calibration is not None
    # Products with weights: those of attention are of two activations, and most of what int8 can lose.
    settings: dict[str, Any] = {
        "op_types_to_quantize": ["MatMul", "Gemm"],
        "per_channel": True,
        "weight_type": QuantType.QInt8,
        "use_external_data_format": external,
        "extra_options": {"MatMulConstBOnly": True},
    }
    ready = plain.with_name(f"ready.{plain.name}")
    with _quietly():
        quant_pre_process(plain, ready, skip_symbolic_shape=True, save_as_external_data=external)
        _forget_shapes(ready, external=external)
        if export.int8 == "dynamic":
            quantize_dynamic(ready, export.target, **settings)
        else:
            reader = _Reader(model.calibration())
            quantize_static(ready, export.target, reader, activation_type=QuantType.QUInt8, **settings)
    before, after = model.measure(predictor(plain)), model.measure(predictor(export.target))
    measured = f"{model.measured} {before:.4f} in fp32 and {after:.4f} in int8 ({export.int8})"
    if not before - after <= export.max_drop:
        raise ConfigError(
            f"{measured}: the drop of {before - after:.4f} is above --max-drop {export.max_drop:g}, and nothing was "
            f"written; raise it, or leave --int8 out"
        )
    sizes = [sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")) for path in (plain, export.target)]
    yield f"{measured}; {sizes[0]:,} and {sizes[1]:,} bytes"
    return {"metric": model.measured, "fp32": before, "int8": after}


def _forget_shapes(path: Path, *, external: bool) -> None:
    """Removes the shapes that were inferred: onnxruntime transposes weights of Gemm and refuses their old ones."""
    import onnx

    graph = onnx.load(path)
    del graph.graph.value_info[:]
    onnx.save(graph, path, save_as_external_data=external, location=f"{path.name}.data")


class _Reader:
    """Batches for the calibration, as onnxruntime asks for them: one at a time, None at the end."""

    def __init__(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else {name: value.numpy() for name, value in batch.items()}


# -- TensorRT ----------------------------------------------------------------------------------------------------------


def _tensor_rt(model: OnnxModel, export: Export) -> Iterator[str]:
    options = [f"{option}={_shapes(model, size)}" for option, size in (("--minShapes", 0), ("--optShapes", 1))]
    options.append(f"--maxShapes={_shapes(model, 2)}")
    when = ", once decrypted" if export.recipients else ""
    yield " ".join(
        [f"for TensorRT{when}: trtexec", f"--onnx={export.destination}", *options, "--saveEngine=model.engine"]
    )
    program = shutil.which("trtexec")
    if program is None:
        return
    command = [program, f"--onnx={export.target}", *options, "--skipInference"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TRT_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        yield f"{program} did not end within {_TRT_LIMIT_S} s"
        return
    last = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()][-1:]
    yield f"{program} built an engine" if done.returncode == 0 else f"{program} failed: {' '.join(last)}"


def _shapes(model: OnnxModel, which: int) -> str:
    """The shapes of all inputs, as trtexec reads them: the smallest, those to optimize for, or the largest."""
    texts = []
    for name, example in model.inputs.items():
        sizes = list(example.shape)
        for axis, dynamic in model.dynamic.get(name, {}).items():
            sizes[axis] = (1, max(1, dynamic.most // 8), dynamic.most)[which]
        texts.append(f"{name}:{'x'.join(map(str, sizes))}")
    return ",".join(texts)


@contextmanager
def _reference_ops() -> Iterator[None]:
    """Within it ops are plain PyTorch, which the exporter knows."""
    was_on, required = mode.is_on(), mode.is_required()
    mode.use("reference")
    try:
        yield
    finally:
        mode.use("fused" if was_on else "reference", require=required)


@contextmanager
def _one_tf32_setting() -> Iterator[None]:
    """Within it cuDNN has its default setting: the exporter reads the older flag, which raises beside another one."""
    cudnn: Any = torch.backends.cudnn
    switches = (cudnn.conv, cudnn.rnn)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "tf32"
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


@contextmanager
def _quietly() -> Iterator[None]:
    """Within it the exporter's and the quantizer's remarks on their own working are not shown."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
