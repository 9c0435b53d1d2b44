"""The wordings of word problems: for each domain and structure those that pretraining shows, and those it never does.

Every wording has `{a}`, `{b}` and `{c}` for the numbers (see `problems.py`) and may have `{name}` and `{item}`.
"""

from __future__ import annotations

ITEMS = {
    "general": ("cup", "pen", "plate", "scarf", "spoon", "candle", "basket", "lamp"),
    "medical": ("syrup", "tonic", "powder", "balm", "tincture", "serum", "salve", "lotion"),
    "legal": ("claim", "lease", "permit", "deed", "petition", "licence", "contract", "summons"),
}

KNOWN_WORDINGS: dict[tuple[str, str], tuple[str, ...]] = {
    ("general", "mul_add"): (
        "{name} buys {a} {item}s at {b} coins each and a bag for {c} coins. How many coins does {name} pay?",
        "One {item} costs {b} coins. {name} takes {a} of them and pays {c} coins for delivery. What is the total?",
        "{name} orders {a} {item}s. Each is {b} coins, and a box adds {c} coins. How many coins is that in all?",
        "At the market a {item} sells for {b} coins. What do {a} of them and a hat for {c} coins cost together?",
    ),
    ("general", "mul_sub"): (
        "{name} buys {a} {item}s at {b} coins each and has a coupon for {c} coins. How many coins does {name} pay?",
        "One {item} costs {b} coins. {name} takes {a} of them and gets {c} coins off. What is the total?",
        "{name} orders {a} {item}s. Each is {b} coins, and the shop takes off {c} coins. How many coins is that in all?",
        "At the market a {item} sells for {b} coins. What do {a} of them cost after a rebate of {c} coins?",
    ),
    ("general", "add_mul"): (
        "{name} buys {a} red and {b} blue {item}s at {c} coins each. How many coins does {name} pay?",
        "One {item} costs {c} coins. {name} takes {a} today and {b} tomorrow. What is the total?",
        "{name} orders {a} small and {b} large {item}s. Each is {c} coins. How many coins is that in all?",
        "At the market a {item} sells for {c} coins. What do {a} for home and {b} for a friend cost together?",
    ),
    ("medical", "mul_add"): (
        "A patient of {a} kg gets {b} mg of {item} per kg and {c} mg more at night. How many mg is that a day?",
        "The dose of a {item} is {b} mg per kg. {name} weighs {a} kg and takes an extra {c} mg. How many mg is that?",
        "{name} weighs {a} kg. For each kg the nurse gives {b} mg of {item}, then adds {c} mg. What is the total in mg?",
        "At {b} mg of {item} per kg, what does a child of {a} kg need with {c} mg on top?",
    ),
    ("medical", "mul_sub"): (
        "A patient of {a} kg gets {b} mg of {item} per kg and has had {c} mg of it. How many mg are left?",
        "The dose of a {item} is {b} mg per kg. {name} weighs {a} kg and skips {c} mg. How many mg is that?",
        "{name} weighs {a} kg. For each kg the nurse gives {b} mg of {item}, but holds back {c} mg. What is the total in mg?",
        "At {b} mg of {item} per kg, what does a child of {a} kg need after {c} mg were given?",
    ),
    ("medical", "add_mul"): (
        "Two patients of {a} kg and {b} kg get {c} mg of {item} per kg. How many mg is that a day?",
        "The dose of a {item} is {c} mg per kg. {name} weighs {a} kg and then gains {b} kg. How many mg is that?",
        "{name} weighs {a} kg and a twin {b} kg. For each kg the nurse gives {c} mg of {item}. What is the total in mg?",
        "At {c} mg of {item} per kg, what do a child of {a} kg and one of {b} kg need?",
    ),
    ("legal", "mul_add"): (
        "A {item} has {a} stages of {b} days each and a grace of {c} days. After how many days is it due?",
        "The interest on a {item} is {b} coins a month. {name} is {a} months late and pays a fee of {c} coins. What is due?",
        "{name} files a {item}. The court sets {a} terms of {b} days and adds {c} days. How many days does it run?",
        "At {b} coins of interest a month, what does a {item} cost after {a} months with a fine of {c} coins?",
    ),
    ("legal", "mul_sub"): (
        "A {item} has {a} stages of {b} days each and {c} days have passed. After how many days is it due?",
        "The interest on a {item} is {b} coins a month. {name} is {a} months late and has paid {c} coins. What is due?",
        "{name} files a {item}. The court sets {a} terms of {b} days and waives {c} days. How many days does it run?",
        "At {b} coins of interest a month, what does a {item} cost after {a} months with a waiver of {c} coins?",
    ),
    ("legal", "add_mul"): (
        "A {item} has {a} short and {b} long stages of {c} days each. After how many days is it due?",
        "The interest on a {item} is {c} coins a month. {name} is {a} months late and then {b} more. What is due?",
        "{name} files a {item}. The court sets {a} terms, then {b} more, of {c} days. How many days does it run?",
        "At {c} coins of interest a month, what does a {item} cost after {a} months and {b} months?",
    ),
}

# Dosage asked as a ward would note it: the skill is one that pretraining teaches, the wordings are not.
NEW_WORDINGS: dict[tuple[str, str], tuple[str, ...]] = {
    ("medical", "mul_add"): (
        "Weight {a} kg, {item} {b} mg per kg, bonus {c} mg. Work out the daily mg.",
        "{name} is {a} kg heavy and needs {b} mg of {item} for every kg. A top-up of {c} mg follows. Give the sum in mg.",
        "Prescribed: {b} mg of {item} per kg of weight plus {c} mg. The weight is {a} kg. State the amount.",
    ),
    ("medical", "mul_sub"): (
        "Weight {a} kg, {item} {b} mg per kg, minus {c} mg. Work out the daily mg.",
        "{name} is {a} kg heavy and needs {b} mg of {item} for every kg. Of this {c} mg is spilled. Give the rest in mg.",
        "Prescribed: {b} mg of {item} per kg of weight less {c} mg. The weight is {a} kg. State the amount.",
    ),
    ("medical", "add_mul"): (
        "Weights {a} kg and {b} kg, {item} {c} mg per kg. Work out the daily mg.",
        "{name} is {a} kg heavy, a sister {b} kg, and both need {c} mg of {item} for every kg. Give the sum in mg.",
        "Prescribed: {c} mg of {item} per kg of weight. The weights are {a} kg and {b} kg. State the amount.",
    ),
}
