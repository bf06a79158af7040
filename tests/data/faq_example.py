"""A small FAQ."""

from __future__ import annotations

from flipped_kd.data.faq import Faq

QUESTIONS = {
    "card": "Where is my card?",
    "lost": "I lost my card, what now?",
    "pin": "How do I change my PIN?",
    "fee": "Why was I charged a fee?",
    "app": "The app does not open",
    "loan": "Can I get a loan?",
}


FAQ = Faq(("my card never came", "the fee is wrong", "change PIN please"), ("card", "fee", "pin"), QUESTIONS)
