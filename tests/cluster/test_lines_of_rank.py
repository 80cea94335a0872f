"""`dmd submit logs ID --rank R`: the lines of one rank, from parts of a log that end anywhere."""

from cluster.jobs.submit import LinesOfRank


def test_lines_of_one_rank_and_a_last_one_without_an_end(capsys):
    show = LinesOfRank(1)
    for part in ("(rank 1 on a) epo", "ch 1\n(rank 10 on b) epoch 1\nof nobody\n(rank 1 on", " a) epoch 2"):
        show(part)
    assert capsys.readouterr().out == "(rank 1 on a) epoch 1\n"
    show.end()
    show.end()
    assert capsys.readouterr().out == "(rank 1 on a) epoch 2\n"
