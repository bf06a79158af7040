"""After a demo: its page, and three questions that the trained matcher answers, with both of its scores."""

from __future__ import annotations

import textwrap
from pathlib import Path

from flipped_kd import FlippedMatcher, load_pairs
from flipped_kd.experiments.report.page import write_page

QUESTIONS = 3
WIDTH = 79
# Texts that are searched, at most: each is read once.
CORPUS = 200
# Of each question's nearest texts, how many are scored as pairs.
NEAREST = 5


def show_page_and_answers(folder: Path, test_file: Path, *, answers: bool = True) -> None:
    """Write the page of an experiment, say where it is, and answer three questions.

    Args:
        folder: of the experiment; its adapter is there too.
        test_file: JSON Lines of test pairs.
        answers: whether to answer questions.
    """
    try:
        print(f"Page with plots and mistakes: {write_page(folder)}")
    except ImportError as error:  # a package of plots is missing, which costs the answers nothing
        print(f"No page: {error}")
    if answers:
        _show_answers(folder, test_file)


def _show_answers(adapter: Path, test_file: Path) -> None:
    pairs = load_pairs(test_file)
    matches = [(a, b) for a, b, label in zip(pairs["text_a"], pairs["text_b"], pairs["label"], strict=True) if label]
    questions = list(dict.fromkeys(a for a, _ in matches))[:QUESTIONS]
    corpus = list(dict.fromkeys(b for _, b in matches))[:CORPUS]
    matcher = FlippedMatcher.from_pretrained(adapter)
    nearest = matcher.search(questions, corpus, NEAREST, return_documents=True, show_progress_bar=False)
    print(f"\n{len(questions)} questions, answered from {len(corpus)} texts of the test pairs:")
    for question, hits in zip(questions, nearest, strict=True):
        pairs_asked = [(question, str(hit["text"])) for hit in hits]
        both = matcher.predict(pairs_asked, score="both", show_progress_bar=False)
        best = int(both.argmax())
        answer = float(matcher.predict([pairs_asked[best]], score="answer", show_progress_bar=False)[0])
        matched = bool(matcher.matches([pairs_asked[best]], show_progress_bar=False)[0])
        print()
        print(textwrap.fill(question, WIDTH, initial_indent="  Q  ", subsequent_indent="     "))
        print(textwrap.fill(pairs_asked[best][1], WIDTH, initial_indent="  A  ", subsequent_indent="     "))
        scores = f"similarity {hits[best]['score']:.2f}, answer {answer:.2f}, both {both[best]:.2f}"
        print(f"     {scores}: {'match' if matched else 'no match'}")
    print("\nAsk your own: a question a line in questions.txt, the texts in texts.txt:")
    print(f"  .venv/bin/flipped-kd search {adapter} questions.txt texts.txt --rerank 10 -o found.csv")
