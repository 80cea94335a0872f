"""Transcripts: every form that is read gives its words and times, every mistake is named."""

import json
from pathlib import Path

import pytest

from data_shards.extraction.scripts import other_script
from data_shards.extraction.transcript import Transcript, Word, split_words, spread_words
from data_shards.extraction.transcript_files import read_transcript, read_transcript_table

WORDS = (Word("really", 0.5, 0.9), Word("good", 1.0, 1.4))


def written(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


FORMS = {
    "words.csv": "word,start,stop\nreally,0.5,0.9\ngood,1.0,1.4\n",
    "columns.csv": "Speaker,End,Begin,Word\nA,0.9,0.5,really\nA,1.4,1.0,good\n",
    "semicolons.csv": "\ufeffword;start;stop\nreally;0,5;0,9\ngood;1,0;1,4\n",
    "list.json": [{"word": "really", "start": 0.5, "stop": 0.9}, {"text": "good", "start": 1.0, "end": 1.4}],
    "whisperx.json": {
        "segments": [
            {
                "start": 0.5,
                "end": 1.4,
                "text": " really good",
                "words": [
                    {"word": " really", "start": 0.5, "end": 0.9, "score": 0.8},
                    {"word": " good", "start": 1.0, "end": 1.4, "score": 0.9},
                ],
            }
        ],
        "word_segments": [{"word": "not", "start": 0, "end": 1}],
    },
    "gentle.json": {
        "transcript": "really good",
        "words": [
            {"alignedWord": "really", "case": "success", "word": "really", "start": 0.5, "end": 0.9},
            {"alignedWord": "good", "case": "success", "word": "good", "start": 1.0, "end": 1.4},
        ],
    },
    "mfa.json": {
        "start": 0,
        "end": 1.5,
        "tiers": {
            "words": {"type": "interval", "entries": [[0, 0.5, ""], [0.5, 0.9, "really"], [1.0, 1.4, "good"]]},
            "phones": {"type": "interval", "entries": [[0.5, 0.6, "R"]]},
        },
    },
}


@pytest.mark.parametrize("name", FORMS)
def test_words_with_times(tmp_path, name):
    assert read_transcript(written(tmp_path, name, FORMS[name])) == Transcript(text="really good", words=WORDS)


def test_a_cue_is_shared_by_the_letters_of_its_words(tmp_path):
    cues = "1\n00:00:01,000 --> 00:00:02,000\n<i>ab</i> cdef\nghij\n\n2\n00:01:00,500 --> 00:01:01,500\nso\n"
    transcript = read_transcript(written(tmp_path, "cues.srt", cues))
    times = [(word.text, word.start, word.stop) for word in transcript.words]
    assert times == [("ab", 1.0, 1.2), ("cdef", 1.2, 1.6), ("ghij", 1.6, 2.0), ("so", 60.5, 61.5)]
    assert transcript.text == "ab cdef ghij so"
    assert transcript.filled == 4


def test_segments_without_words_are_shared_too(tmp_path):
    content = {"language": "en", "segments": [{"start": 0, "end": 1, "text": " ab cd"}]}
    transcript = read_transcript(written(tmp_path, "whisper.json", content))
    assert [word.stop for word in transcript.words] == [0.5, 1.0]
    assert (transcript.filled, transcript.language) == (2, "en")


def test_words_without_times_share_what_is_between_their_neighbours(tmp_path):
    content = [
        {"word": "so"},
        {"word": "it", "start": 1, "end": 2},
        {"word": "is"},
        {"word": "14"},
        {"word": "now", "start": 3, "end": 4},
        {"word": "here"},
    ]
    transcript = read_transcript(written(tmp_path, "words.json", content))
    times = [(word.start, word.stop) for word in transcript.words]
    assert times == [(1, 1), (1, 2), (2, 2.5), (2.5, 3), (3, 4), (4, 4)]
    assert transcript.filled == 4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", " really\ngood\n"),
        ("a.csv", "text\nreally good\n"),
        ("a.json", {"text": "really good"}),
        ("b.json", [{"word": "really"}, {"word": "good"}]),
        ("b.csv", "word\nreally\ngood\n"),
    ],
)
def test_text_without_times(tmp_path, name, content):
    assert read_transcript(written(tmp_path, name, content)) == Transcript(text="really good")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.vtt", "WEBVTT", "is no transcript; give one of .json, .csv, .srt, .txt"),
        ("a.csv", "token,start\nso,1\n", "it has no column word or text; its first line is 'token,start'"),
        ("a.csv", "word,start,begin\nso,1,1\n", "two columns may be its start"),
        ("a.csv", "word,start,stop\nwell, so,1,2\n", "line 2 has another number of fields than the header"),
        ("a.csv", "word,start,stop\nso,one,2\n", "time 'one' is no number of seconds"),
        ("a.csv", "word,start,stop\nso,2,1\n", "word 'so' is said from 2.0 to 1.0 s"),
        ("a.csv", "word,start,stop\nso,nan,1\n", "word 'so' is said from nan to 1.0 s"),
        ("a.csv", "word,start,stop\nso,1,2\nit,0.5,1\n", "word 2, 'it', begins at 0.5 s and word 1, 'so', at 1.0 s"),
        ("a.csv", "text\none\ntwo\n", "it has 2 rows of text, and a clip has one"),
        ("a.srt", "1\n00:00:01 -> 00:00:02\nso\n", "a cue has no line of times with -->: '1'"),
        ("a.srt", "1\n1.5 --> 2.5\nso\n", "'1.5 --> 2.5' is no line of times"),
        ("a.json", "{", "it is no JSON"),
        ("a.json", {"utterances": []}, "it has no words, segments, tiers or text; its keys are utterances"),
        ("a.json", [1.5], "1.5 is no word"),
        ("a.json", {"segments": [{"text": "so"}]}, "segment 'so' has no start and end"),
        ("a.json", {"tiers": {"A - words": {}, "B - words": {}}}, "it has 2 tiers of words, and it takes one"),
    ],
)
def test_mistakes_are_named(tmp_path, name, content, message):
    path = written(tmp_path, name, content)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        read_transcript(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)


def test_another_encoding_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes("schön".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a.txt is not UTF-8 \(byte 3\); save it as UTF-8"):
        read_transcript(tmp_path / "a.txt")


def test_a_table_of_many_clips(tmp_path):
    rows = "clip,word,start,stop\na,really,0.5,0.9\nb,so,0,1\na,good,1.0,1.4\n"
    by_clip = read_transcript_table(written(tmp_path, "words.csv", rows))
    assert by_clip == {
        "a": Transcript(text="really good", words=WORDS),
        "b": Transcript(text="so", words=(Word("so", 0, 1),)),
    }
    texts = read_transcript_table(written(tmp_path, "texts.csv", 'id,text\na,"well, so"\nb,\n'))
    assert texts == {"a": Transcript(text="well, so"), "b": Transcript(text="")}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("text\nso\n", "it has no column clip"),
        ("clip,text\na,so\na,no\n", "clip 'a': it has 2 rows of text"),
        ("clip,word,start,stop\na,so,1,0\n", "clip 'a': word 'so' is said from 1.0 to 0.0 s"),
    ],
)
def test_mistakes_of_a_table_name_the_clip(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_transcript_table(written(tmp_path, "table.csv", rows))


def test_a_part_of_a_transcript():
    transcript = Transcript(text="really good", words=WORDS, filled=2, language="en")
    part = Transcript(text="good", words=WORDS[1:], filled=1, language="en")
    assert transcript.between(0.7 + 0.01, 2.0) == part
    with pytest.raises(ValueError, match="the transcript has no word times, so it cannot be cut"):
        Transcript(text="so").between(0, 1)


def test_words_of_scripts_with_and_without_spaces():
    assert split_words("Well, it's -- 14!") == ["Well,", "it's--", "14!"]
    assert split_words("我很高兴。OK 吗?") == ["我", "很", "高", "兴。", "OK", "吗?"]
    assert split_words(" ...\n") == []


def test_words_are_spread_by_letters():
    assert spread_words(["a", "bcd"], 1.0, 3.0) == (Word("a", 1.0, 1.5), Word("bcd", 1.5, 3.0))


@pytest.mark.parametrize(
    ("text", "language", "script"),
    [
        ("this is café", "en", ""),
        ("это фильм ok", "en", "CYRILLIC"),
        ("this is", "zh", "LATIN"),
        ("これは映画です", "ja", ""),
        ("电影 is good 好看电影", "zh", ""),
        ("12.5 !", "en", ""),
    ],
)
def test_another_script_is_found(text, language, script):
    assert other_script(text, language) == script
