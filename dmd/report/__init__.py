"""Figures and tables from finished runs: `dmd report RUN [RUN ...]`, `dmd missing RUN`."""
