"""MulT against its description: a reference of one sample and one encoder at a time, and the published code's weights.

The reference follows section 3 of Tsai et al. (ACL 2019) where yaohungt/Multimodal-Transformer@a670936 does, and the
code where they differ: pre-norm layers, a mask of the future, no position where channel 0 is zero.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmd.model import ModelConfig
from dmd.model.baselines.mult import MulT
from dmd.model.transformer import TransformerStack

DIMS = {"text": 9, "audio": 5, "vision": 7}
LENGTHS = {"text": 6, "audio": 11, "vision": 8}
CONFIG = ModelConfig(task="regression", dim=8, heads=2, levels=2, kernel_text=3, kernel_audio=1, kernel_vision=2)
DEFAULT_EPSILON = 1e-5
"""Of a layer norm."""


def small(**changes: object) -> MulT:
    torch.manual_seed(0)
    network = MulT(ModelConfig(**{**vars(CONFIG), **changes}), DIMS, LENGTHS).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases and gains that are not 0 and 1
    return network


def samples(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = {m: torch.randn(count, LENGTHS[m], DIMS[m], generator=generator).double() for m in DIMS}
    x["audio"][0, :4] = 0  # padding, which gets no position
    return x


def norm(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    deviation = (x.var(-1, unbiased=False, keepdim=True) + DEFAULT_EPSILON).sqrt()
    return (x - x.mean(-1, keepdim=True)) / deviation * gain + shift


def embedded(x: Tensor) -> Tensor:
    """sqrt(d) x + position, x [T, d]: sines, then cosines, of positions that count from 1."""
    steps, dim = x.shape
    half = dim // 2
    result = math.sqrt(dim) * x
    for step in range(steps):
        if x[step, 0] == 0:
            continue
        angles = torch.tensor([(step + 1) * math.exp(-k * math.log(10000) / (half - 1)) for k in range(half)])
        result[step] += torch.cat([angles.sin(), angles.cos()]).double()
    return result


def attended(query: Tensor, source: Tensor, in_weight: Tensor, in_bias: Tensor, heads: int) -> Tensor:
    """Multi-head attention of [T, d] to [S, d], of which step t sees t + 1 + |T - S| steps."""
    steps, dim = query.shape
    parts = [
        part @ w.T + b for part, w, b in zip((query, source, source), in_weight.chunk(3), in_bias.chunk(3), strict=True)
    ]
    width = dim // heads
    seen = torch.ones(steps, len(source)).tril(abs(len(source) - steps)).bool()
    columns = []
    for head in range(heads):
        q, k, v = (part[:, head * width : (head + 1) * width] for part in parts)
        scores = (q @ k.T / math.sqrt(width)).masked_fill(~seen, -math.inf)
        columns.append(scores.softmax(-1) @ v)
    return torch.cat(columns, dim=-1)


def encoded(stack: TransformerStack, number: int, x: Tensor, source: Tensor | None, heads: int) -> Tensor:
    """Encoder `number` of a stack, of one sample [T, d]."""
    x = embedded(x)
    source = None if source is None else embedded(source)
    for layer in stack.layers:
        own = {name: p[:, number] if "norm" in name else p[number] for name, p in layer.named_parameters()}
        gain, shift = own["norm_weight"], own["norm_bias"]
        query = norm(x, gain[0], shift[0])
        key = query if source is None else norm(source, gain[0], shift[0])
        mixed = attended(query, key, own["in_proj_weight"], own["in_proj_bias"], heads)
        x = x + mixed @ own["out_proj_weight"].T + own["out_proj_bias"]
        hidden = F.relu(norm(x, gain[1], shift[1]) @ own["fc1_weight"].T + own["fc1_bias"])
        x = x + hidden @ own["fc2_weight"].T + own["fc2_bias"]
    return norm(x, stack.norm_weight[number], stack.norm_bias[number])


def reference(network: MulT, x: dict[str, Tensor], sample: int) -> Tensor:
    """The prediction for one sample."""
    heads = network.config.heads
    convolved = {}
    for m, of_modality in x.items():
        weight = network.convolution[m].weight  # [d, D, window]
        convolved[m] = F.conv1d(of_modality[sample].T[None], weight)[0].T  # [T, d]
    crossmodal = [("text", "audio"), ("text", "vision"), ("audio", "text"), ("audio", "vision")]
    crossmodal += [("vision", "text"), ("vision", "audio")]
    reinforced = [
        encoded(network.crossmodal_encoders, number, convolved[target], convolved[source], heads)
        for number, (target, source) in enumerate(crossmodal)
    ]
    last = []
    for number in range(3):
        both = torch.cat(reinforced[2 * number : 2 * number + 2], dim=-1)  # [T, 2d]
        last.append(encoded(network.memory_encoders, number, both, None, heads)[-1])
    h = torch.cat(last)  # [6d]
    residual = network.head.fc2(F.relu(network.head.fc1(h))) + h
    return network.head.out(residual)[0]


def test_predictions_are_those_of_the_description():
    network, x = small(), samples(3)
    with torch.no_grad():
        output = network(x["text"], x["audio"], x["vision"])
        wanted = torch.stack([reference(network, x, sample) for sample in range(3)])
    torch.testing.assert_close(output.predictions["fused"], wanted, rtol=1e-6, atol=1e-6)
    linear = network.head.out(output.representation).squeeze(-1)
    torch.testing.assert_close(output.predictions["fused"], linear)


def published_parameters(dim: int, levels: int, kernels: dict[str, int], dims: dict[str, int]) -> int:
    """Weights of src/models.py and modules/transformer.py that a training changes."""

    def encoder(width: int, layers: int) -> int:
        attention = 4 * width * width + 4 * width
        mlp = 2 * width * 4 * width + 4 * width + width
        return layers * (attention + mlp + 2 * 2 * width) + 2 * width

    combined = 6 * dim
    convolutions = sum(dim * dims[m] * kernels[m] for m in dims if dims[m] != dim)
    head = 2 * (combined * combined + combined) + combined + 1
    return convolutions + 6 * encoder(dim, levels) + 3 * encoder(2 * dim, max(levels, 3)) + head


@pytest.mark.parametrize(
    "dim, heads, levels, kernel, dims",
    [(50, 10, 4, 5, {"text": 768, "audio": 5, "vision": 20}), (30, 5, 5, 1, {"text": 300, "audio": 74, "vision": 35})],
    ids=["MMSA, CMU-MOSI", "Tsai et al., the code's own settings"],
)
def test_as_many_parameters_as_the_published_code(dim, heads, levels, kernel, dims):
    kernels = dict.fromkeys(dims, kernel)
    config = ModelConfig(
        task="regression", dim=dim, heads=heads, levels=levels, **{f"kernel_{m}": kernel for m in kernels}
    )
    with torch.device("meta"):
        network = MulT(config, dims, dict.fromkeys(dims, 50))
    assert sum(p.numel() for p in network.parameters()) == published_parameters(dim, levels, kernels, dims)


def test_masked_padding_hides_what_follows():
    """Padding behind the end of all modalities changes nothing, which the published code lets in."""
    steps, padding = 6, 3
    network = small(masked_padding=True, kernel_text=1, kernel_audio=1, kernel_vision=1)
    longer = MulT(network.config, DIMS, dict.fromkeys(DIMS, steps + padding)).double()
    shorter = MulT(network.config, DIMS, dict.fromkeys(DIMS, steps)).double()
    x = [torch.randn(2, steps, dim, dtype=torch.float64) for dim in DIMS.values()]
    predictions = []
    for padded, own in (([F.pad(part, (0, 0, 0, padding)) for part in x], longer), (x, shorter)):
        own.load_state_dict(network.state_dict())
        with torch.no_grad():
            predictions.append(own(*padded).predictions["fused"])
    torch.testing.assert_close(*predictions)
