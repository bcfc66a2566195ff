"""The logical problems as constraints, solved by trying every possibility.

Each solver gives all answers that fit its text: a problem is sound when there is exactly one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations, permutations, product
from math import ceil
from typing import Any

Places = Mapping[str, int]
Truths = Mapping[str, bool]
World = tuple[tuple[bool, ...], ...]

WEEK = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
SOLVERS: dict[str, Callable[[], set[Any]]] = {}


def _solves(number: int) -> Callable[[Callable[[], set[Any]]], Callable[[], set[Any]]]:
    def register(solver: Callable[[], set[Any]]) -> Callable[[], set[Any]]:
        SOLVERS[f"reasoning-{number:03}"] = solver
        return solver

    return register


def _orders(names: str) -> Iterator[dict[str, int]]:
    """Every way to give the places 1, 2, … to the names."""
    for order in permutations(names.split()):
        yield {name: place for place, name in enumerate(order, 1)}


def _at(places: Places, place: int) -> str:
    (name,) = [name for name, taken in places.items() if taken == place]
    return name


def _consistent(names: str, sentences: Callable[[Truths], list[bool]]) -> list[dict[str, bool]]:
    """Who tells the truth, in each way in which every sentence is as true as the one who says it."""
    ways = [
        dict(zip(names.split(), values, strict=True)) for values in product([True, False], repeat=len(names.split()))
    ]
    return [way for way in ways if all(way[name] == said for name, said in zip(way, sentences(way), strict=False))]


def _worlds(kinds: int) -> Iterator[World]:
    """Small worlds: which sorts of things there are, a sort being what it is and is not of the given kinds.

    Four things at most: each "some" of a problem, and each exception to a conclusion, needs only one.
    """
    sorts = list(product([True, False], repeat=kinds))
    for size in range(1, 5):
        yield from combinations(sorts, size)


def _every(world: World, a: int, b: int) -> bool:
    return all(thing[b] for thing in world if thing[a])


def _some(world: World, a: int, b: int) -> bool:
    return any(thing[a] and thing[b] for thing in world)


def _must(worlds: list[World], conclusions: Mapping[str, Callable[[World], bool]]) -> set[str]:
    """The conclusions that hold in every world."""
    assert worlds
    return {letter for letter, holds in conclusions.items() if all(holds(world) for world in worlds)}


@_solves(1)
def _race() -> set[str]:
    return {
        _at(p, 3)
        for p in _orders("Ada Ben Cleo Dev Esra")
        if p["Cleo"] == p["Ben"] + 1 and p["Ada"] < p["Ben"] and p["Dev"] == 5 and p["Esra"] < p["Ada"]
    }


@_solves(2)
def _florins() -> set[str]:
    florin, coin, button, round_ = range(4)
    worlds = [
        w for w in _worlds(4) if _every(w, florin, coin) and not _some(w, coin, button) and _some(w, round_, florin)
    ]
    return _must(
        worlds,
        {
            "A": lambda w: _every(w, round_, coin),
            "B": lambda w: not _some(w, round_, button),
            "C": lambda w: any(thing[round_] and not thing[button] for thing in w),
            "D": lambda w: _some(w, button, florin),
        },
    )


@_solves(3)
def _anouk() -> set[str]:
    ways = _consistent("Anouk Boris Chen", lambda t: [not t["Boris"], not t["Chen"], not t["Anouk"] and not t["Boris"]])
    return {name for way in ways if sum(way.values()) == 1 for name, truthful in way.items() if truthful}


@_solves(4)
def _row() -> set[str]:
    return {
        _at(p, 4)
        for p in _orders("Fatou Goran Hana Idris Jun")
        if p["Hana"] == 3 and p["Jun"] == p["Idris"] + 1 and p["Idris"] in {1, 5} and abs(p["Fatou"] - p["Hana"]) > 1
    }


@_solves(5)
def _floors() -> set[int]:
    return {
        p["Milo"]
        for p in _orders("Kemal Lena Milo Nuria Otto")
        if p["Milo"] == p["Kemal"] + 1 and p["Nuria"] == p["Kemal"] + 2 and p["Lena"] > p["Nuria"] and p["Otto"] == 1
    }


@_solves(6)
def _parcels() -> set[str]:
    return {
        _at(p, 2)
        for p in _orders("red blue green yellow white")
        if p["red"] > p["blue"] > p["green"] > p["white"] and p["yellow"] > p["red"]
    }


@_solves(7)
def _round_table() -> set[str]:
    def apart(p: Places, a: str, b: str) -> int:
        steps = abs(p[a] - p[b])
        return min(steps, 6 - steps)

    return {
        name
        for p in _orders("Amal Bea Cyra Dana Eli Finn")
        if apart(p, "Amal", "Bea") == 3
        and apart(p, "Cyra", "Amal") == apart(p, "Cyra", "Dana") == apart(p, "Eli", "Amal") == 1
        for name in p
        if apart(p, name, "Cyra") == 3
    }


@_solves(8)
def _books() -> set[str]:
    return {
        _at(p, 1)
        for p in _orders("atlas bestiary cookbook diary epic fable")
        if p["cookbook"] == 3
        and p["fable"] == p["cookbook"] + 1
        and abs(p["atlas"] - p["diary"]) == 3
        and p["diary"] > p["fable"]
        and p["epic"] in {1, 6}
        and p["bestiary"] < p["atlas"]
    }


@_solves(9)
def _cousins() -> set[int]:
    children = {
        "parents": ["Ravi", "Noor", "Elif"],
        "Noor": ["one", "other"],
        "Elif": ["third"],
        "Ravi": ["Kiran", "Tara"],
    }
    return {len([child for person in children["parents"] if person != "Ravi" for child in children[person]])}


@_solves(10)
def _hedda() -> set[str]:
    ways = _consistent("Hedda Ivo", lambda t: [not t["Hedda"] or not t["Ivo"]])
    return {name for way in ways for name, truthful in way.items() if not truthful}


@_solves(11)
def _boxes() -> set[str]:
    return {key for key in ("red", "blue", "green") if [key != "red", key == "blue", key != "blue"].count(True) == 1}


@_solves(12)
def _cup() -> set[str]:
    return {
        did
        for did in ("Lars", "Mona", "Nils", "Omid")
        if [did == "Mona", did == "Omid", did != "Nils", did != "Omid"].count(True) == 1
    }


@_solves(13)
def _three_counts() -> set[str]:
    ways = _consistent("Olu Pim Rea", lambda t: [list(t.values()).count(False) == liars for liars in (1, 2, 3)])
    return {name for way in ways for name, truthful in way.items() if truthful}


@_solves(14)
def _robot() -> set[str]:
    def truthful(day: int) -> bool:
        return day % 7 in {0, 1, 2}

    def says(day: int) -> list[bool]:
        return [not truthful(day - 1), truthful(day + 1), not truthful(day + 3)]

    return {WEEK[day] for day in range(7) if all(said == truthful(day) for said in says(day))}


@_solves(15)
def _talks() -> set[str]:
    return {_at(p, 3) for p in _orders("Uma Vito Wanda") if p["Vito"] != 1 and p["Wanda"] < p["Uma"] and p["Uma"] != 3}


@_solves(16)
def _job() -> set[int]:
    hours = {"A": 3, "B": 2, "C": 4, "D": 1}
    after = {"A": "", "B": "", "C": "A", "D": "BC"}

    def done(part: str) -> int:
        return hours[part] + max((done(before) for before in after[part]), default=0)

    return {max(map(done, hours))}


@_solves(17)
def _room() -> set[str]:
    booked = [(540, 615), (690, 780), (855, 960)]
    starts = [t for t in range(540, 1080 - 90 + 1) if all(t + 90 <= begin or t >= end for begin, end in booked)]
    return {f"{starts[0] // 60:02}:{starts[0] % 60:02}"}


@_solves(18)
def _plants() -> set[str]:
    return {
        _at(p, 1)
        for p in _orders("cactus fern ivy moss rose")
        if p["cactus"] == 5 and p["fern"] == p["ivy"] + 1 and 1 < p["moss"] < p["ivy"]
    }


@_solves(19)
def _letters() -> set[int]:
    pattern = "X"
    for _ in range(6):
        pattern = "".join({"X": "XY", "Y": "X"}[letter] for letter in pattern)
    return {len(pattern)}


@_solves(20)
def _friends() -> set[str]:
    yara = {"Monday", "Wednesday", "Thursday", "Saturday"}
    return (yara & (set(WEEK) - {"Wednesday", "Saturday"})) - {"Monday"}


@_solves(21)
def _glims() -> set[str]:
    glim, tarn, sorrel = range(3)
    worlds = [
        w for w in _worlds(3) if not _some(w, glim, tarn) and _every(w, sorrel, tarn) and _some(w, sorrel, sorrel)
    ]
    return _must(
        worlds,
        {
            "A": lambda w: _every(w, tarn, sorrel),
            "B": lambda w: _some(w, glim, sorrel),
            "C": lambda w: _some(w, tarn, glim),
            "D": lambda w: not _some(w, sorrel, glim),
        },
    )


@_solves(22)
def _dorps() -> set[str]:
    dorp, kev, lim = range(3)
    worlds = [w for w in _worlds(3) if _every(w, dorp, kev) and _some(w, kev, lim)]
    found = _must(
        worlds,
        {
            "A": lambda w: _some(w, dorp, lim),
            "B": lambda w: not _some(w, dorp, lim),
            "C": lambda w: _every(w, kev, dorp),
        },
    )
    return found or {"D"}


@_solves(23)
def _lamp() -> set[str]:
    cases = [
        (lamp, shut)
        for lamp, shut, outside in product([True, False], repeat=3)
        if (not lamp or shut) and (not shut or outside) and not outside
    ]
    found = {"A": all(lamp for lamp, _ in cases), "B": not any(lamp for lamp, _ in cases)}
    found |= {"C": all(shut for _, shut in cases), "D": len({lamp for lamp, _ in cases}) == 2}
    return {letter for letter, holds in found.items() if holds}


@_solves(24)
def _malik() -> set[str]:
    ticket, upstairs, dog = range(3)
    worlds = [
        (person, *(thing for thing in w if thing != person))  # Malik comes first
        for w in _worlds(3)
        if _every(w, ticket, upstairs) and not _some(w, upstairs, dog)
        for person in w
        if person[upstairs]
    ]
    return _must(
        worlds,
        {
            "A": lambda w: not w[0][dog],
            "B": lambda w: w[0][ticket],
            "C": lambda w: _every(w, upstairs, ticket),
            "D": lambda w: not any(thing[dog] and not thing[ticket] for thing in w),
        },
    )


@_solves(25)
def _chess() -> set[int]:
    return {both for both in range(31) if both <= 15 and (18 - both) + (15 - both) + both + 7 == 30}


@_solves(26)
def _club() -> set[int]:
    everyone = range(12)
    swim = set(range(8))  # who swims can be named first; who rows and climbs is tried in every way
    return {
        min(
            len(swim & set(row) & set(climb))
            for row in combinations(everyone, 9)
            for climb in combinations(everyone, 11)
        )
    }


@_solves(27)
def _divisible() -> set[int]:
    return {len([n for n in range(1, 31) if (n % 3 == 0) != (n % 5 == 0)])}


@_solves(28)
def _socks() -> set[int]:
    without = [sum(taken) for taken in product(range(5), range(7), range(4)) if max(taken) < 3]
    return {max(without) + 1}


@_solves(29)
def _sums() -> set[int]:
    numbers = [3, 4]
    while len(numbers) < 7:
        numbers.append(numbers[-1] + numbers[-2])
    return {numbers[-1]}


@_solves(30)
def _lamps() -> set[str]:
    colours = ["red", "red", "blue", "green", "yellow"]
    return {(colours * ceil(44 / len(colours)))[44 - 1]}


PARENT = {"Tarek": "Mina", "Lou": "Mina", "Sami": "Lou", "Vera": "Tarek", "Juno": "Vera"}
PARENT |= {"Gita": "their parent", "Hugo": "their parent", "Ivy": "Hugo", "Jonah": "Gita", "Kim": "Jonah"}


def _ancestors(person: str) -> list[str]:
    """Nearest first."""
    return [PARENT[person], *_ancestors(PARENT[person])] if person in PARENT else []


@_solves(31)
def _mina() -> set[str]:
    return {{1: "B", 2: "C"}[generation] for generation, name in enumerate(_ancestors("Juno")) if name == "Mina"}


@_solves(32)
def _ivy() -> set[str]:
    ivy, jonah = _ancestors("Ivy"), _ancestors("Jonah")
    related = {
        "A": ivy[0] in jonah[1:],
        "B": jonah[0] in ivy[1:],
        "C": ivy[0] == jonah[0],
        "D": ivy[0] != jonah[0] and ivy[1] == jonah[1],
    }
    return {letter for letter, holds in related.items() if holds}
