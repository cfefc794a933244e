"""Formulas as docs/losses.md writes them, in one line of code, drawn as MathML that a browser needs no script for.

`sum_n e^(beta (s_an - base))` becomes a sum sign with n below it, an exponent and a Greek letter; the order of the
symbols stays what it was, so that nothing can change its meaning. What is not a formula (it has English words)
is left to the caller.
"""

import html
import re
from collections.abc import Collection

GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "eps": "ε", "epsilon": "ε",
    "theta": "θ", "lambda": "λ", "lambda_": "λ", "mu": "μ", "nu": "ν", "pi": "π", "psi": "ψ",
    "rho": "ρ", "tau": "τ",
}  # fmt: skip
BIG = {"sum": "∑"}
FUNCTIONS = {
    "CE", "Cov", "Var", "abs", "angular", "clip", "cos", "exp", "floor", "log", "loss", "lse",
    "max", "mean", "min", "norm", "rel", "sig", "softmax", "softplus", "sqrt", "tan", "weights",
}  # fmt: skip
MINUS = "\N{MINUS SIGN}"
OPERATORS = {
    "<=": "≤", ">=": "≥", "!=": "≠", "-": MINUS, ".": "·", "+": "+", "=": "=", "<": "<", ">": ">",
    "/": "/", ",": ",", ":": ":",
}  # fmt: skip
TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)"
    r"|(?P<signed>[A-Za-z][+-](?=_))|(?P<word>[A-Za-z][A-Za-z0-9]*)"
    r"|(?P<hinge>\]\+)|(?P<operator><=|>=|!=|[-.+=<>/,:])|(?P<open>[(\[{])|(?P<close>[)\]}])"
    r"|(?P<up>\^)|(?P<down>_)"
)


class NotAFormulaError(ValueError):
    """A text that has words, or characters that no formula has."""


def mathml(text: str, hyper: Collection[str] = ()) -> str:
    """Returns a formula as MathML.

    Args:
      text: the formula, as in "log(1 + sum_p e^(-alpha (s_ap - base))) / alpha".
      hyper: the names of hyper-parameters, which are kept whole (`k_temperature` has no subscript).

    Raises:
      NotAFormulaError: a text that is no formula.
    """
    parser = _Parser(text, hyper)
    body = parser.row(None)
    source = f'<annotation encoding="text/plain">{html.escape(text)}</annotation>'
    return f"<math><semantics><mrow>{body}</mrow>{source}</semantics></math>"


class _Parser:
    def __init__(self, text: str, hyper: Collection[str]):
        self.text, self.hyper, self.at = text, hyper, 0

    def peek(self) -> tuple[str, str]:
        match = TOKEN.match(self.text, self.at)
        if match is None:
            if self.at < len(self.text):
                raise NotAFormulaError(self.text[self.at :])
            return "end", ""
        return str(match.lastgroup), match.group()

    def take(self) -> tuple[str, str]:
        kind, token = self.peek()
        self.at += len(token)
        return kind, token

    def row(self, closing: str | None) -> str:
        """The symbols up to a closing bracket, which is taken, too."""
        parts: list[str] = []
        spaced = False
        was_atom = False
        while True:
            kind, token = self.peek()
            if kind == "end":
                if closing is not None:
                    raise NotAFormulaError(f"{closing} is missing")
                return "".join(parts)
            if kind in ("close", "hinge") and closing is not None and token[0] == closing:
                return "".join(parts)
            if kind == "space":
                self.take()
                spaced = True
                continue
            if kind == "operator":
                self.take()
                parts.append(_operator(token, prefix=not parts))
                was_atom = False
            else:
                atom = self.atom()
                if was_atom and spaced:
                    parts.append('<mspace width="0.22em"/>')
                parts.append(atom)
                was_atom = True
            spaced = False

    def atom(self) -> str:
        """One symbol or bracket with what hangs on it."""
        hyper = self.hyper_parameter()
        if hyper is not None:
            return self.hung(f"<mi>{_name(hyper)}</mi>", False)
        kind, token = self.take()
        if kind == "number":
            mantissa, _, exponent = token.partition("e")
            if exponent:
                return f"<msup><mn>10</mn><mn>{exponent.replace('-', MINUS)}</mn></msup>"
            return self.hung(f"<mn>{mantissa}</mn>", False)
        if kind == "open":
            return self.bracket(token)
        if kind == "signed":
            sign = OPERATORS[token[1]]
            self.take()
            return f"<msubsup><mi>{token[0]}</mi>{self.sub()}<mo>{sign}</mo></msubsup>"
        if kind == "word":
            if token in BIG:
                return self.hung(f"<mo largeop='false'>{BIG[token]}</mo>", True)
            if len(token) > 1 and token not in GREEK and token not in FUNCTIONS:
                raise NotAFormulaError(token)
            return self.hung(f"<mi>{GREEK.get(token, token)}</mi>", False)
        raise NotAFormulaError(token)

    def hyper_parameter(self) -> str | None:
        match = re.compile(r"[A-Za-z]\w*").match(self.text, self.at)
        word = match.group() if match else ""
        if word in self.hyper and ("_" in word or word not in GREEK):
            self.at += len(word)
            return word
        return None

    def bracket(self, opening: str) -> str:
        closing = {"(": ")", "[": "]", "{": "}"}[opening]
        inner = self.row(closing)
        kind, _ = self.take()
        fence = f'<mo stretchy="false">{opening}</mo>', f'<mo stretchy="false">{closing}</mo>'
        body = f"<mrow>{fence[0]}{inner}{fence[1]}</mrow>"
        if kind == "hinge":
            if self.peek()[0] == "up":
                self.take()
                return f"<msubsup>{body}<mo>+</mo>{self.sup()}</msubsup>"
            return f"<msub>{body}<mo>+</mo></msub>"
        return self.hung(body, False)

    def hung(self, base: str, under: bool) -> str:
        """The base with its subscript and its exponent, where it has them."""
        sub = sup = None
        if self.peek()[0] == "down":
            self.take()
            if self.peek()[0] in ("word", "number", "open"):
                sub = self.sub()
        if self.peek()[0] == "up":
            self.take()
            sup = self.sup()
        if sub is not None and sup is not None:
            return f"<msubsup>{base}{sub}{sup}</msubsup>"
        if sub is not None:
            return f"<{'munder' if under else 'msub'}>{base}{sub}</{'munder' if under else 'msub'}>"
        return base if sup is None else f"<msup>{base}{sup}</msup>"

    def sub(self) -> str:
        kind, token = self.peek()
        if kind != "open":
            self.take()
            # "ap" is a of p and not a word: letters of their own, in italics.
            letters = token if len(token) == 2 and token.islower() else [token]
            return f"<mrow>{''.join(f'<mi>{html.escape(x)}</mi>' for x in letters)}</mrow>"
        self.take()
        end = self.text.index("}", self.at)
        inside, self.at = self.text[self.at : end], end + 1
        words = re.split(r"( of )", inside)
        parts = [
            f"<mtext>\u00a0{w.strip()}\u00a0</mtext>" if i % 2 else _Parser(w, self.hyper).row(None)
            for i, w in enumerate(words)
        ]
        return f"<mrow>{''.join(parts)}</mrow>"

    def sup(self) -> str:
        kind, token = self.peek()
        if kind == "open":
            self.take()
            inner = self.row(")")
            self.take()
            return f"<mrow>{inner}</mrow>"
        sign = ""
        if kind == "operator":
            self.take()
            sign = _operator(token, prefix=True)
        body = self.atom()
        # e^s(a, p): the argument belongs to the exponent, as no space says.
        if body.startswith("<mi>") and self.peek() == ("open", "("):
            self.take()
            body += self.bracket("(")
        return f"<mrow>{sign}{body}</mrow>"


def _operator(token: str, prefix: bool) -> str:
    if prefix:
        return f'<mo form="prefix">{html.escape(OPERATORS[token])}</mo>'
    if token == "/":
        return '<mo lspace="0.15em" rspace="0.15em">/</mo>'
    return f"<mo>{html.escape(OPERATORS[token])}</mo>"


def _name(hyper: str) -> str:
    return GREEK.get(hyper, html.escape(hyper))
