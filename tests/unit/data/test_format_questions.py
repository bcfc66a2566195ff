"""What was asked for passes, and what models write instead does not."""

from __future__ import annotations

import pytest

from pytest_llmbench.core.scoring import score

from .bank import QUESTIONS, ids

RAIN = "Rain falls from dark clouds, drums on the roofs, fills the ditches along the road, and leaves the air clean."
EGGS = "1. Boil water in a pot.\n2. Put the egg in for eight minutes.\n3. Cool it in cold water."
TABLE = "| Item | Price |\n|------|-------|\n| lamp | 15    |\n| rope | 9     |"

# A good answer, then bad ones.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "format-001": (
        '{"town": "Brennick", "inhabitants": 18400}',
        '{"town": "Brennick", "inhabitants": "18400"}',
        '{"town": "Brennick", "inhabitants": 18400, "country": null}',
        'Here is the object:\n{"town": "Brennick", "inhabitants": 18400}',
    ),
    "format-002": (
        "apple\npear\nplum",
        "1. apple\n2. pear\n3. plum",
        "apple\npear",
        "apple, pear, plum",
        "Apple\nPear\nPlum",
    ),
    "format-003": ("NO", "No", "NO.", "NO, she can not."),
    "format-004": ('["oak", "elm", "birch", "pine"]', '["oak", "elm", "pine", "birch"]', "[oak, elm, birch, pine]"),
    "format-005": (
        '{"order": {"id": 57, "items": ["lamp", "rope"]}}',
        '{"id": 57, "items": ["lamp", "rope"]}',
        '{"order": {"id": "57", "items": ["lamp", "rope"]}}',
    ),
    "format-006": (
        '{"open": false, "seats": 12, "note": null}',
        '{"open": "false", "seats": 12, "note": null}',
        '{"open": 0, "seats": 12, "note": null}',
        '{"open": false, "seats": 12, "note": ""}',
    ),
    "format-007": ("[3, 7, 19, 28, 42]", "[3, 7, 19, 42, 28]", "3, 7, 19, 28, 42"),
    "format-008": ("name,age\nInes,31\nPaulo,27", "name, age\nInes, 31\nPaulo, 27", "Ines,31\nPaulo,27"),
    "format-009": ("A;B;C", "A; B; C", "A;B;C;", "a;b;c"),
    "format-010": (
        "name: Alma\ncolour: grey\nsize: 40",
        "Name: Alma\nColour: grey\nSize: 40",
        "name: Alma, colour: grey, size: 40",
    ),
    "format-011": ("3.50 kg", "3.5 kg", "3.50kg", "The parcel weighs 3.50 kg"),
    "format-012": ("The sea is calm this morning.", "The sea is calm.", "The sea is calm. It sleeps now."),
    "format-013": (
        "A bicycle has two wheels. Its rider turns the pedals.",
        "A bicycle has two wheels.",
        "A bicycle has two wheels. It has a saddle. It has pedals.",
        "It is nice. I like it.",
    ),
    "format-014": (RAIN, "Rain is water that falls from the sky.", f"{RAIN} {RAIN}"),
    "format-015": ("THE TRAIN LEAVES AT NOON", "The Train Leaves At Noon", "THE TRAIN LEAVES AT NOON."),
    "format-016": ("come here please", "come here, please", "Come here please"),
    "format-017": ("24", "24 legs", "twenty-four", "24."),
    "format-018": ("2031-03-07", "07-03-2031", "2031-3-7", "2031-07-03", "The date is 2031-03-07"),
    "format-019": ("20:45", "8:45", "20.45", "20:45 h", "21:15"),
    "format-020": (EGGS, EGGS.replace("1.", "-"), f"How to boil an egg:\n{EGGS}", EGGS.replace("\n", "\n\n")),
    "format-021": (
        "- cat\n- dog\n- owl\n- bee",
        "* cat\n* dog\n* owl\n* bee",
        "- cat\n- dog\n- owl",
        "- a cat\n- a dog\n- an owl\n- a bee",
    ),
    "format-022": (
        "A forest is quiet at night.",
        "The forest is quiet at night.",
        "At night the forest is quiet.",
        "A forest is quiet. Owls fly.",
    ),
    "format-023": (
        "Today we walked slowly home.",
        "Today we walked home slowly.",
        "We walked home.",
        "Today we walked home",
    ),
    "format-024": ("[lantern]", "[ lantern ]", "(lantern)", "[Lantern]"),
    "format-025": (
        TABLE,
        TABLE.replace("|------|-------|\n", ""),
        TABLE.replace("-", " "),
        "Item: lamp, Price: 15",
        f"```\n{TABLE}\n```",
    ),
    "format-026": ("<answer>7</answer>", "<answer> 7 </answer>", "7", "3 + 4 = <answer>7</answer>"),
    "format-027": (
        "Gate 4b -- closed (since 06:10)",
        "Gate 4b – closed (since 06:10)",
        "Gate 4B -- closed (since 06:10)",
        '"Gate 4b -- closed (since 06:10)"',
    ),
    "format-028": (
        "east | north | south | west",
        "west | north | south | east",
        "east, north, south, west",
        "east|north|south|west",
    ),
    "format-029": (
        '{"name": "Ona", "age": 33, "languages": ["Basque", "Thai"]}',
        '{"name": "Ona", "age": 66, "languages": ["Basque", "Thai"]}',
        '{"name": "Ona", "age": 33, "languages": ["Basque"]}',
        '{"name": "Ona", "age": 33, "languages": ["Basque", "Basque"]}',
        '{"name": "Ona", "age": 33, "languages": "Basque, Thai"}',
    ),
    "format-030": ("total_net_price", "Total_Net_Price", "total-net-price", "`total_net_price` it is"),
    "format-031": (
        '[{"item": "cup", "count": 3}, {"item": "plate", "count": 5}]',
        '[{"item": "plate", "count": 5}, {"item": "cup", "count": 3}]',
        '{"cup": 3, "plate": 5}',
    ),
    "format-032": ("COMPLAINT", "PRAISE", "COMPLAINT, because the kettle stopped", "This is a COMPLAINT"),
}
GOOD = [(identifier, answers[0]) for identifier, answers in EXAMPLES.items()]
BAD = [(identifier, answer) for identifier, answers in EXAMPLES.items() for answer in answers[1:]]


def test_each_question_has_a_good_and_two_bad_answers() -> None:
    assert list(EXAMPLES) == ids("format")
    assert min(len(answers) for answers in EXAMPLES.values()) >= 3


@pytest.mark.parametrize(("identifier", "answer"), GOOD)
def test_the_form_that_was_asked_for_passes(identifier: str, answer: str) -> None:
    scored = score(QUESTIONS[identifier].scorer, answer)
    assert scored.correct, scored.why
    assert score(QUESTIONS[identifier].scorer, f"\n{answer}\n").correct


@pytest.mark.parametrize(("identifier", "answer"), BAD)
def test_another_form_fails(identifier: str, answer: str) -> None:
    assert not score(QUESTIONS[identifier].scorer, answer).correct


@pytest.mark.parametrize(("identifier", "answer"), GOOD)
def test_a_good_answer_with_a_remark_fails(identifier: str, answer: str) -> None:
    """Where anything may follow by the question itself, it makes the wrong number of sentences or lines."""
    remark = f"Sure! Here it is, as you have asked for.\n\n{answer}\n\nI hope this helps. Tell me if the form is wrong!"
    assert not score(QUESTIONS[identifier].scorer, remark).correct
