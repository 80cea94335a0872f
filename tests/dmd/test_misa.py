"""MISA against its description: packed LSTMs, PyTorch's encoder layer, every loss by hand, the published weights."""

import math

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig

from dmd.losses.baselines.misa import MisaObjective, difference, reconstruction, similarity
from dmd.losses.config import MisaConfig
from dmd.losses.model_objective import FUSED_ERROR
from dmd.model import ModelConfig
from dmd.model.baselines.fusion import FusionLayer
from dmd.model.baselines.misa import FUSION_WIDTH, MISA, UtteranceEncoder
from dmd.model.config import MODALITIES
from dmd.model.recurrent import BidirectionalLSTM
from dmd.model.text import TextEncoder, build_text_encoder

DIMS = {"text": 9, "audio": 5, "vision": 7}
LENGTHS = {"text": 6, "audio": 11, "vision": 8}
CONFIG = ModelConfig(task="regression", dim=8, heads=2, text_dropout=0.0)
PARTS = {"weight_ih": "weight_input", "weight_hh": "weight_hidden", "bias_ih": "bias_input", "bias_hh": "bias_hidden"}


def torch_lstm(ours: BidirectionalLSTM) -> nn.LSTM:
    """PyTorch's LSTM with the weights of ours."""
    hidden, features = ours.ahead.weight_hidden.shape[1], ours.ahead.weight_input.shape[1]
    theirs = nn.LSTM(features, hidden, bidirectional=True).double()
    for direction, suffix in ((ours.ahead, ""), (ours.back, "_reverse")):
        for name, own in PARTS.items():
            getattr(theirs, f"{name}_l0{suffix}").data = getattr(direction, own).data
    return theirs


def packed_utterance(ours: UtteranceEncoder, x: Tensor) -> Tensor:
    """The published reading of one sample's unpadded steps x [n, D]: [4D]."""
    packed = nn.utils.rnn.pack_padded_sequence(x[:, None], torch.tensor([len(x)]))
    states, (first, _) = torch_lstm(ours.first)(packed)
    normed = ours.norm(nn.utils.rnn.pad_packed_sequence(states)[0])
    _, (second, _) = torch_lstm(ours.second)(nn.utils.rnn.pack_padded_sequence(normed, torch.tensor([len(x)])))
    return torch.cat([first, second], dim=2).permute(1, 0, 2).reshape(-1)  # both ahead, then both back


def test_utterances_are_those_of_packed_lstms():
    """At any place of the padding; a sample without a frame has one of zeros."""
    torch.manual_seed(0)
    encoder = UtteranceEncoder(5).double()
    ranges = torch.tensor([[0, 9], [0, 4], [6, 9], [2, 3], [0, 0]])
    x = torch.zeros(len(ranges), 9, 5, dtype=torch.float64)
    for sample, (begin, end) in zip(x, ranges.tolist(), strict=True):
        sample[begin:end] = torch.randn(end - begin, 5)
    wanted = [
        packed_utterance(encoder, sample[b : max(e, 1)]) for sample, (b, e) in zip(x, ranges.tolist(), strict=True)
    ]
    torch.testing.assert_close(encoder(x, ranges), torch.stack(wanted))


def test_lstms_keep_float32_under_autocast():
    lstm, x, lengths = BidirectionalLSTM(5, 4), torch.randn(3, 7, 5), torch.tensor([7, 2, 4])
    with torch.autocast("cpu", torch.bfloat16):
        states, final = lstm(x, lengths)
    wanted = lstm(x, lengths)
    assert torch.equal(states, wanted[0])
    assert torch.equal(final, wanted[1])


def test_orthogonal_recurrent_weights():
    weight = UtteranceEncoder(6).first.back.weight_hidden.detach()  # [24, 6]
    torch.testing.assert_close(weight.T @ weight, torch.eye(6))


def torch_layer(ours: FusionLayer, dim: int, heads: int) -> nn.TransformerEncoderLayer:
    """PyTorch's encoder layer with the weights of ours."""
    theirs = nn.TransformerEncoderLayer(dim, heads, FUSION_WIDTH, batch_first=True).double().eval()
    theirs.self_attn.in_proj_weight.data = ours.in_proj.weight.data
    theirs.self_attn.in_proj_bias.data = ours.in_proj.bias.data
    names = {"self_attn.out_proj": "out_proj", "linear1": "fc1", "linear2": "fc2"}
    names |= {"norm1": "attention_norm", "norm2": "mlp_norm"}
    for name, own in names.items():
        theirs.get_submodule(name).load_state_dict(ours.get_submodule(own).state_dict())
    return theirs


def network(text_encoder: TextEncoder | None = None) -> MISA:
    torch.manual_seed(0)
    return MISA(CONFIG, DIMS, LENGTHS, text_encoder).double()


def tiny_bert() -> TextEncoder:
    config = BertConfig(vocab_size=20, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    return build_text_encoder(config.to_dict(), frozen=False).eval()


def samples(count: int) -> dict[str, Tensor]:
    """Padded at the end, at the front, or not at all."""
    x = {m: torch.randn(count, LENGTHS[m], DIMS[m], dtype=torch.float64) for m in MODALITIES}
    x["audio"][0, 5:] = x["vision"][1, :2] = x["text"][2, 4:] = 0
    return x


def described(ours: MISA, utterances: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The prediction for one sample, [1], and its reconstructions."""
    origin = {m: ours.projections[m](utterances[m]) for m in MODALITIES}
    private = {m: torch.sigmoid(ours.private_encoders[m](origin[m])) for m in MODALITIES}
    shared = {m: torch.sigmoid(ours.shared_encoder(origin[m])) for m in MODALITIES}
    order = ("text", "vision", "audio")
    six = torch.stack([*(private[m] for m in order), *(shared[m] for m in order)])
    fused = torch_layer(ours.fusion, CONFIG.dim, CONFIG.heads)(six[None]).reshape(-1)
    reconstructed = {m: ours.decoders[m](private[m] + shared[m]) for m in MODALITIES}
    return ours.out(torch.relu(ours.hidden(fused))), reconstructed


@pytest.mark.parametrize("tokens", [False, True], ids=["text features", "token ids"])
def test_predictions_are_those_of_the_description(tokens):
    ours, x = network(tiny_bert() if tokens else None), samples(3)
    ids = torch.tensor([[[1, 5, 2, 0], [1, 1, 1, 0]], [[1, 7, 8, 2], [1, 1, 1, 1]], [[1, 2, 0, 0], [1, 1, 0, 0]]])
    ids = torch.cat([ids, torch.zeros_like(ids[:, :1])], dim=1)  # [3, 3, 4]
    with torch.no_grad():
        output = ours(ids if tokens else x["text"], x["audio"], x["vision"])
        for sample in range(3):
            frames = {m: of[sample][(of[sample] != 0).any(-1)] for m, of in x.items()}
            utterances = {m: packed_utterance(encode, frames[m]) for m, encode in ours.utterance_encoders.items()}
            if tokens:
                utterances["text"] = ours.text_encoder(ids[sample : sample + 1])[0, : int(ids[sample, 1].sum())].mean(0)
            prediction, reconstructed = described(ours, utterances)
            torch.testing.assert_close(output.predictions["fused"][sample : sample + 1], prediction)
            for m in MODALITIES:
                torch.testing.assert_close(output.compared[f"reconstructed_{m}"][sample], reconstructed[m])


def published_parameters(dims: dict[str, int], dim: int, *, bert: bool) -> int:
    """Weights of src/models.py that the published training changes, without BERT or the word embedding: not those of
    `sp_discriminator`, and with `use_bert` of the text's layer norm, which no loss reaches."""

    def lstm(features: int, hidden: int) -> int:
        return 2 * (4 * hidden * features + 4 * hidden * hidden + 2 * 4 * hidden)

    def linear(features: int, outputs: int) -> int:
        return features * outputs + outputs

    sequences = [d for m, d in dims.items() if not (bert and m == "text")]
    utterances = [4 * d for d in sequences] + [dims["text"]] * bert
    encoders = sum(lstm(d, d) + lstm(2 * d, d) + 2 * 2 * d for d in sequences)
    projections = sum(linear(width, dim) + 2 * dim for width in utterances)
    spaces = (3 + 1 + 3) * linear(dim, dim)
    layer = 4 * linear(dim, dim) + linear(dim, FUSION_WIDTH) + linear(FUSION_WIDTH, dim) + 2 * 2 * dim
    return encoders + projections + spaces + layer + linear(6 * dim, 3 * dim) + linear(3 * dim, 1)


@pytest.mark.parametrize("bert", [False, True])
def test_as_many_parameters_as_the_published_code(bert):
    config, dims = ModelConfig(task="regression", dim=128, heads=2), {"text": 300, "audio": 74, "vision": 47}
    encoder = tiny_bert() if bert else None
    with torch.device("meta"):
        ours = MISA(config, dims, dict.fromkeys(dims, 50), encoder)
    own = [p for name, p in ours.named_parameters() if not name.startswith("text_encoder.")]
    dims["text"] = encoder.dim if encoder else dims["text"]
    assert sum(p.numel() for p in own) == published_parameters(dims, 128, bert=bert)


def vectors(seed: int) -> dict[str, Tensor]:
    """{m: [G, S, d]}: two ghost batches of four samples, three channels."""
    generator = torch.Generator().manual_seed(seed)
    return {m: torch.rand(2, 4, 3, generator=generator, dtype=torch.float64) for m in MODALITIES}


MASK = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 0]], dtype=torch.float64)


def valid(of: dict[str, Tensor], ghost: int) -> dict[str, list[list[float]]]:
    """{m: rows of the valid samples}."""
    return {m: x[ghost][MASK[ghost] == 1].tolist() for m, x in of.items()}


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_similarity_by_hand():
    shared = vectors(1)
    for ghost, ours in enumerate(similarity(shared, MASK).tolist()):
        rows = valid(shared, ghost)

        def moments(m: str, order: int) -> list[float]:
            means = [mean(list(column)) for column in zip(*rows[m], strict=True)]  # noqa: B023
            if order == 1:
                return means
            columns = zip(*rows[m], strict=True)  # noqa: B023
            return [mean([(v - c) ** order for v in column]) for column, c in zip(columns, means, strict=True)]

        pairs = [("text", "vision"), ("text", "audio"), ("audio", "vision")]
        distances = [math.dist(moments(m, k), moments(n, k)) for m, n in pairs for k in (1, 2, 3, 4, 5)]
        assert ours == pytest.approx(sum(distances) / 3, rel=1e-12)


def test_difference_by_hand():
    private, shared = vectors(2), vectors(3)
    for ghost, ours in enumerate(difference(private, shared, MASK).tolist()):

        def units(of: dict[str, Tensor], m: str) -> list[list[float]]:
            rows = valid(of, ghost)[m]  # noqa: B023
            means = [mean(list(column)) for column in zip(*rows, strict=True)]
            centred = [[v - c for v, c in zip(row, means, strict=True)] for row in rows]
            return [[v / (math.hypot(*row) + 1e-6) for v in row] for row in centred]

        def correlation(first: list[list[float]], second: list[list[float]]) -> float:
            channels = range(len(first[0]))
            samples = range(len(first))
            return mean([sum(first[s][i] * second[s][j] for s in samples) ** 2 for i in channels for j in channels])

        pairs = [(units(private, m), units(shared, m)) for m in MODALITIES]
        pairs += [(units(private, m), units(private, n)) for m, n in (("audio", "text"), ("audio", "vision"))]
        pairs += [(units(private, "text"), units(private, "vision"))]
        assert ours == pytest.approx(sum(correlation(*pair) for pair in pairs), rel=1e-12)


def test_reconstruction_by_hand():
    origin, reconstructed = vectors(4), vectors(5)
    for ghost, ours in enumerate(reconstruction(origin, reconstructed, MASK).tolist()):
        first, second = valid(origin, ghost), valid(reconstructed, ghost)
        errors = [
            mean([(a - b) ** 2 for x, y in zip(first[m], second[m], strict=True) for a, b in zip(x, y, strict=True)])
            for m in MODALITIES
        ]
        assert ours == pytest.approx(mean(errors), rel=1e-12)


def test_one_sample_has_finite_gradients():
    """Its central moments are all 0, where a distance has no gradient."""
    shared = {m: x[:1].float().requires_grad_() for m, x in vectors(6).items()}
    mask = torch.tensor([[1.0, 0, 0, 0]])
    (similarity(shared, mask) + difference(shared, shared, mask)).sum().backward()
    for x in shared.values():
        assert x.grad is not None
        assert bool(x.grad.isfinite().all())
        assert float(x.grad[0, 1:].abs().sum()) == 0


def test_the_objective_weighs_its_terms():
    ours = network()
    settings = MisaConfig(similarity_weight=0.5, difference_weight=0.25, reconstruction_weight=2.0)
    objective = MisaObjective(settings, CONFIG)
    x = {m: torch.randn(8, LENGTHS[m], DIMS[m], dtype=torch.float64) for m in MODALITIES}
    output = ours(x["text"], x["audio"], x["vision"])
    labels = torch.linspace(-3, 3, 8, dtype=torch.float64).view(2, 4)
    terms = objective(output, labels, MASK)
    squared = (output.predictions["fused"].view(2, 4) - labels) ** 2 * MASK
    torch.testing.assert_close(terms["task_fused"], squared.sum(1) / MASK.sum(1))
    total = terms["task_fused"] + 0.5 * terms["similarity"] + 0.25 * terms["difference"] + 2 * terms["reconstruction"]
    torch.testing.assert_close(terms["total"], total)
    assert list(terms) == [*(term.name for term in MisaObjective.described()), FUSED_ERROR.name, "total"]
    absolute_error = (output.predictions["fused"].view(2, 4) - labels).abs() * MASK
    torch.testing.assert_close(terms[FUSED_ERROR.name], absolute_error.sum(1) / MASK.sum(1))
    absolute = MisaObjective(MisaConfig(regression_loss="absolute"), CONFIG)(output, labels, MASK)["task_fused"]
    torch.testing.assert_close(absolute, squared.sqrt().sum(1) / MASK.sum(1))
