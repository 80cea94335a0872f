"""Label files as people and spreadsheets write them: what is read, and what is named."""

from pathlib import Path

import pytest

from data_shards.sources.label_table import read_label_table


def table(path: Path, text: str, *, encoding: str = "utf-8", emotions: tuple[str, ...] = ()):
    path = path / "labels.csv"
    path.write_text(text, encoding=encoding)
    return read_label_table(path, emotions=emotions)


def test_the_file_of_mmsa(tmp_path):
    text = (
        "video_id,clip_id,text,label,label_T,annotation,mode\n"
        'abc,1,"a film, good",2.4,1,Positive,train\n'
        "video_0001,0001,我不想嫁给李茶,-0.2,0,Negative,valid\n"
    )
    found = table(tmp_path, text)
    first, second = found.rows
    assert (first.id, first.video, first.split, first.labels, first.text) == (
        *("abc$_$1", "abc", "train", {"label": 2.4}, "a film, good"),
    )
    assert (second.id, second.labels) == ("video_0001$_$0001", {"label": -0.2})
    assert found.notes == {"column label_T not used": 2, "column annotation not used": 2}
    assert (found.faults, found.kind) == ((), "label")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_what_a_spreadsheet_writes(tmp_path, encoding):
    found = table(tmp_path, "ID;Split;Label\r\na;Dev;1,5\r\nb;test;-,5\r\n;;\r\n", encoding=encoding)
    assert [(row.id, row.split, row.labels) for row in found.rows] == [
        ("a", "valid", {"label": 1.5}),
        ("b", "test", {"label": -0.5}),
    ]
    assert found.notes == {"separated by semicolons": 2, "numbers with a decimal comma": 2}


def test_each_bad_row_is_named_and_the_others_stay(tmp_path):
    rows = [
        *("good,train,1,,", "nonumber,train,much,,", "nosplit,later,1,,", "nolabel,test,,,", ",test,1,,"),
        *("backwards,test,1,5,4", "when,test,1,soon,", "wide,test,1,,,9", "twice,test,1,,", "twice,test,2,,"),
        *("same,test,1,,", "same,test,1,,", "infinite,test,inf,,"),
    ]
    found = table(tmp_path, "id,split,label,start,stop\n" + "\n".join(rows))
    assert [row.id for row in found.rows] == ["good", "same"]
    assert found.faults == (
        ("nonumber", "line 3: label 'much' is not a number"),
        ("nosplit", "line 4: split 'later' is unknown; use train, valid, test (or val, dev, validation)"),
        ("nolabel", "line 5: label is empty"),
        ("line 6", "line 6 has no id"),
        ("backwards", "line 7: stop 4 is not after start 5"),
        ("when", "line 8: start 'soon' is no time in seconds"),
        (
            "wide",
            "line 9 has 6 values, and the header 5; a value that holds the separator needs quotation marks",
        ),
        ("twice", "lines 10 and 11 say different things of it; leave one"),
        ("infinite", "line 14: label 'inf' is not a number"),
    )
    assert found.notes == {"rows that repeat another": 1}


def test_classes_are_numbers_or_names(tmp_path):
    numbers = table(tmp_path, "id,split,class\na,train,0\nb,test,2.0\n")
    assert [row.labels for row in numbers.rows] == [{"class": 0}, {"class": 2}]
    names = table(tmp_path, "id,split,class,label\na,train,0,1\nb,test,joy,2\n")
    assert [row.labels for row in names.rows] == [{"label": 1.0, "class": "0"}, {"label": 2.0, "class": "joy"}]


def test_emotions_are_columns_that_are_named(tmp_path):
    text = "id,split,Happy,sad,other\na,train,1,0,7\nb,test,0.5,1,7\nc,test,-1,1,7\n"
    found = table(tmp_path, text, emotions=("happy", "sad"))
    assert [row.labels for row in found.rows] == [{"happy": 1, "sad": 0}, {"happy": 0.5, "sad": 1}]
    assert found.faults == (("c", "line 4: happy is -1; an emotion is there (above 0) or not (0)"),)
    assert found.notes == {"column other not used": 3}
    as_given = table(tmp_path, text, emotions=("HAPPY", "Sad"))
    assert as_given.rows[0].labels == {"HAPPY": 1, "Sad": 0}
    assert as_given.notes == {"column other not used": 3}
    with pytest.raises(ValueError, match="the emotion sad is named twice; leave one"):
        table(tmp_path, text, emotions=("sad", "Sad"))
    with pytest.raises(ValueError, match="lacks the column angry that is named as an emotion; it has id, spl"):
        table(tmp_path, text, emotions=("angry",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"split,label\ntrain,1\n", "has neither a column id nor video_id and clip_id; it has split, label"),
        (b"id,label,Label\na,1,2\n", "has two columns Label; leave one"),
        (b"id,label\n\xb5,1\n", r"is not UTF-8: line 2 has the byte 0xb5; save it as UTF-8"),
        (
            b'id,split,text,label\na,train,so,1\nb,train,"so,1\nc,test,so,1\n',
            r"labels.csv line 4: unexpected end of data",
        ),
        (b"", "is empty or no file"),
        (b"\n\n", "is empty; write a header such as id,split,label,text"),
        (b"PK\x03\x04abc", "is a zip archive that is not whole, not a csv file of labels"),
    ],
)
def test_a_file_that_is_no_label_file(tmp_path, content, message):
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_label_table(tmp_path / "labels.csv")
