"""Tokenizers of a few hundred pieces, trained on texts: one of each kind that text encoders have."""

from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, GPT2Tokenizer, RobertaTokenizer, XLNetTokenizer

Kind = Literal["bert", "gpt2", "roberta", "xlnet"]
KINDS: tuple[Kind, ...] = ("bert", "gpt2", "roberta", "xlnet")
TEXTS = (
    "This movie was unbelievable, and it's the best I've seen!",
    "the plot was slow: boring, badly acted and far too long",
    "THE MUSIC IS UNBELIEVABLY GOOD um I WOULD SEE IT AGAIN",
    "Café, naïve, résumé — well, ünbelievable …",
    "这部电影非常好看，我很喜欢。",
    "剧情很慢，不好看！",
)
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_XLNET_SPECIAL = ["<cls>", "<sep>", "<unk>", "<pad>", "<mask>", "<eod>", "<eop>", "<s>", "</s>"]
_ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
_SIZE, _BYTES = 300, 256


def save_tokenizer(kind: Kind, folder: Path, *, size: int = _SIZE) -> Path:
    """The directory of a tokenizer, as transformers writes it; XLNet's pads at the start, GPT-2's has no pad token."""
    folder.mkdir(parents=True, exist_ok=True)
    _make(kind, folder, size).save_pretrained(folder)
    return folder


def save_vocabulary(folder: Path) -> Path:
    """BERT's bare vocab.txt of a directory that `save_tokenizer` has written."""
    numbers = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    file = folder / "vocab.txt"
    file.write_text("\n".join(sorted(numbers, key=numbers.__getitem__)) + "\n", encoding="utf-8")
    return file


def _make(kind: Kind, folder: Path, size: int) -> Any:
    if kind == "bert":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        _train(tokenizer, trainers.WordPieceTrainer(vocab_size=size, special_tokens=BERT_SPECIAL, show_progress=False))
        return BertTokenizer(vocab=tokenizer.get_vocab(), model_max_length=512)
    if kind == "xlnet":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        special = {"special_tokens": _XLNET_SPECIAL, "unk_token": "<unk>"}
        _train(tokenizer, trainers.UnigramTrainer(vocab_size=size, show_progress=False, **special))
        tokenizer.save(str(folder / "tokenizer.json"))
        return XLNetTokenizer.from_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size + _BYTES,
        special_tokens=["<|endoftext|>"] if kind == "gpt2" else _ROBERTA_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    _train(tokenizer, trainer)
    vocabulary, merges = tokenizer.model.save(str(folder))
    made = GPT2Tokenizer if kind == "gpt2" else RobertaTokenizer
    return made(vocab=vocabulary, merges=merges)


def _train(tokenizer: Tokenizer, trainer: Any) -> None:
    tokenizer.train_from_iterator(TEXTS, trainer)
