"""PTX, the machine code that NVRTC makes of our CUDA sources, as C++ for the emulated GPU of cuda_shim.h.

A register is an unsigned integer of its width that is read and written as the type an instruction names; a branch is a
goto; global, local and parameter memory are the host's, shared memory the block's. Only forms of instructions that the
table below names are known: any other one, and arithmetic that the chip might contract or flush, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

TYPES = {f"{kind}{bits}": f"{'u' * (kind != 's')}int{bits}_t" for kind in "usb" for bits in (8, 16, 32, 64)}
TYPES |= {"f32": "float", "f16": "uint16_t", "pred": "bool"}
WIDE = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}
COMPARISONS = {"eq": "a == b", "ne": "a != b", "lt": "a < b", "le": "a <= b", "gt": "a > b", "ge": "a >= b"}
UNORDERED = {"equ": "!(a < b || a > b)", "neu": "!(a == b)", "ltu": "!(a >= b)", "leu": "!(a > b)"}
UNORDERED |= {"gtu": "!(a <= b)", "geu": "!(a < b)"}
SPECIAL = {"%tid.x": "thread_index()", "%ctaid.x": "block_index()", "%ctaid.y": "block_row()"}
SPECIAL |= {"%ntid.x": "block_size()", "%nctaid.x": "block_count()"}

# opcode, its type written T -> type of the result, types of the operands a, b, c, d, and what it computes
INTEGERS = {
    "add": ("T", "T T", "a + b"),
    "sub": ("T", "T T", "a - b"),
    "mul.lo": ("T", "T T", "a * b"),
    "mul.hi": ("T", "T T", "high_half(a, b)"),
    "mul.wide": ("W", "T T", "(W)a * (W)b"),
    "mad.lo": ("T", "T T T", "a * b + c"),
    "mad.wide": ("W", "T T W", "(W)a * (W)b + c"),
    "div": ("T", "T T", "b == 0 ? 0 : a / b"),
    "rem": ("T", "T T", "b == 0 ? 0 : a % b"),
    "min": ("T", "T T", "a < b ? a : b"),
    "max": ("T", "T T", "a > b ? a : b"),
    "neg": ("T", "T", "-a"),
    "abs": ("T", "T", "a < 0 ? -a : a"),
    "and": ("T", "T T", "a & b"),
    "or": ("T", "T T", "a | b"),
    "xor": ("T", "T T", "a ^ b"),
    "not": ("T", "T", "~a"),
    "shl": ("T", "T u32", "shifted_left(a, b)"),
    "shr": ("T", "T u32", "shifted_right(a, b)"),
    "popc": ("u32", "T", "__builtin_popcountll((uint64_t)a)"),
    "bfi": ("T", "T T u32 u32", "inserted(a, b, c, d)"),
    "selp": ("T", "T T pred", "c ? a : b"),
    "mov": ("T", "T", "a"),
}
FLOATS = {  # every one rounded where it stands: none may be contracted
    "add.rn": ("T", "T T", "a + b"),
    "sub.rn": ("T", "T T", "a - b"),
    "mul.rn": ("T", "T T", "a * b"),
    "div.rn": ("T", "T T", "a / b"),
    "rcp.rn": ("T", "T", "1.0f / a"),
    "sqrt.rn": ("T", "T", "std::sqrt(a)"),
    "fma.rn": ("T", "T T T", "std::fma(a, b, c)"),
    "fma.rm": ("T", "T T T", "fma_downwards(a, b, c)"),
    "min": ("T", "T T", "std::fmin(a, b)"),
    "max": ("T", "T T", "std::fmax(a, b)"),
    "neg": ("T", "T", "-a"),
    "abs": ("T", "T", "std::fabs(a)"),
    "ex2.approx.ftz": ("T", "T", "exp2_flushed(a)"),
    "selp": ("T", "T T pred", "c ? a : b"),
    "mov": ("T", "T", "a"),
}
PREDICATES = {
    "and": ("T", "T T", "a && b"),
    "or": ("T", "T T", "a || b"),
    "xor": ("T", "T T", "a != b"),
    "not": ("T", "T", "!a"),
    "mov": ("T", "T", "a"),
}
TO_FLOAT = {"cvt.rmi.f32.f32": "std::floor(a)", "cvt.sat.f32.f32": "saturated(a)", "cvt.f32.f16": "half_value(a)"}


class NotTranslated(Exception):
    """An instruction that the table does not name."""


@dataclass
class Function:
    """One .entry or .func: its name, parameters and their sizes in bytes, the name of what it returns, its body."""

    name: str
    parameters: list[tuple[str, int]]
    returns: str
    body: str
    most_threads: int  # 0: no entry
    symbols: dict[str, str] = field(default_factory=dict)  # what has an address -> its C++ name


def translate(ptx: str) -> str:
    """C++ of a whole PTX file: behind ptx_runtime.h it gives a function for each kernel, as KERNEL of cuda_shim.h."""
    ptx = re.sub(r"//[^\n]*|\.pragma [^;]*;|^\s*\.(loc|file)\s[^\n]*", "", ptx, flags=re.M)
    symbols = {"memory": "0"}  # shared memory begins at its address 0
    data = ""
    for m in re.finditer(r"^\.global \.align \d+ \.(\w+) ([\w$]+)(?:\[(\d+)\])? = ([^;]+);", ptx, re.M):
        kind, name, n, value = m.groups()
        symbols[name] = f"(uint64_t)data_{name}"
        values = value if value.startswith("{") else "{" + re.sub(r"^0f", "0x", value) + "}"
        kind = kind.replace("f32", "u32")  # as the bits that it is given by
        data += f"alignas(16) static {TYPES[kind]} data_{name}[{n or 1}] = {values};\n"
    return data + "".join(_function(f) for f in _functions(ptx, symbols))


def _functions(ptx: str, symbols: dict[str, str]) -> Iterator[Function]:
    returned = r"(?:\(\.param [^)]*?([\w$]+)\[\d+\]\)\s*)?"
    head = rf"^(?:\.visible )?\.(entry|func)\s*{returned}([\w$]+)\s*\(([^)]*)\)\s*((?:\.\w+[^\n{{]*\n)*)\{{"
    for m in re.finditer(head, ptx, re.M):
        depth, end = 1, m.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(ptx[end], 0)
            end += 1
        parameters = [(name, int(size)) for name, size in re.findall(r"([\w$]+)\[(\d+)\]", m[4])]
        threads = re.search(r"\.maxntid (\d+)", m[5])
        own = symbols | {name: f"(uint64_t)argument_{i}" for i, (name, _) in enumerate(parameters)}
        own |= {m[2]: "(uint64_t)returned"} if m[2] else {}
        most = int(threads[1]) if threads else 1024
        yield Function(m[3], parameters, m[2] or "", ptx[m.end() : end - 1], most if m[1] == "entry" else 0, own)


def _function(f: Function) -> str:
    arguments = ["unsigned char* returned"] if f.returns else []
    arguments += [f"const unsigned char* argument_{i}" for i in range(len(f.parameters))]
    lines = [_line(f, statement) for statement in _statements(f.body)]
    head = f"static __attribute__((noinline)) void run_{f.name}({', '.join(arguments)}) {{"
    code = "\n".join([head, *lines, "}\n"])
    if f.most_threads:
        code += f"PTX_KERNEL({f.name}, {f.parameters[0][1]}, {f.most_threads})\n"
    return code


def _statements(body: str) -> Iterator[str]:
    """Statements without their semicolons, labels with their colons, and the braces of blocks."""
    text = ""
    for c in body:
        if c in "{}" and not text.strip():
            yield c
        elif c == ";" or (c == ":" and re.fullmatch(r"\s*\$\w+", text)):
            yield " ".join(text.split()) + (":" if c == ":" else "")
            text = ""
        else:
            text += c


def _line(f: Function, statement: str) -> str:
    if statement in "{}":
        return statement
    if statement.endswith(":"):
        return f"{_label(statement[:-1])}:;"
    if m := re.match(r"\.reg \.(\w+) (.*)", statement):
        names = []
        for register in _split(m[2]):
            many = re.fullmatch(r"(%\w+)<(\d+)>", register)
            names += [_register(f"{many[1]}{i}") for i in range(int(many[2]))] if many else [_register(register)]
        kind = {"float": "uint32_t"}.get(TYPES[m[1]], TYPES[m[1]])
        return f"{kind} {', '.join(names)};"
    if m := re.match(r"\.(?:local|param) \.align \d+ \.b8 ([\w$]+)\[(\d+)\]", statement):
        f.symbols[m[1]] = f"(uint64_t){m[1]}"
        return f"alignas(16) unsigned char {m[1]}[{m[2]}];"
    m = re.match(r"(?:@(!?)(%p\d+) )?([\w.:]+) ?(.*)", statement)
    assert m is not None, statement
    guard = f"if ({m[1]}{_register(m[2])}) " if m[2] else ""
    return f"{guard}{{ {_instruction(f, m[3], _split(m[4]))} }}"


def _split(text: str) -> list[str]:
    """At the commas that are in no bracket."""
    return [part.strip() for part in re.split(r",(?![^{(\[]*[})\]])", text) if part.strip()]


def _register(name: str) -> str:
    return "v_" + re.sub(r"\W", "", name)


def _label(name: str) -> str:
    return name.replace("$", "at_")


def _value(f: Function, operand: str, kind: str) -> str:
    """An operand as a C++ expression of a PTX type."""
    to = TYPES[kind]
    if m := re.fullmatch(r"0[fF]([0-9A-Fa-f]{8})", operand):
        return f"as<{to}>(0x{m[1]}u)"
    if re.fullmatch(r"-?\d+", operand):
        return f"({to}){int(operand) & (1 << 64) - 1}ull"
    if operand in SPECIAL:
        return f"({to}){SPECIAL[operand]}"
    if operand in f.symbols:
        return f"({to}){f.symbols[operand]}"
    return f"as<{to}>({_register(operand)})"


def _set(register: str, kind: str, expression: str) -> str:
    return f"put<{TYPES[kind]}>({_register(register)}, {expression});"


def _listed(operand: str) -> list[str]:
    return _split(operand[1:-1]) if operand.startswith("{") else [operand]


def _address(f: Function, operand: str) -> str:
    m = re.fullmatch(r"\[([%\w$]+)(?:\+(-?\d+))?\]", operand)
    assert m is not None, operand
    return f"{_value(f, m[1], 'u64')} + ({m[2] or 0})"


def _instruction(f: Function, opcode: str, operands: list[str]) -> str:
    name, *modifiers = opcode.split(".")
    special = SHAPED.get(name)
    if special is not None and (code := special(f, opcode, modifiers, operands)):
        return code
    kind = modifiers[-1] if modifiers else ""
    table = PREDICATES if kind == "pred" else FLOATS if kind == "f32" else INTEGERS
    rule = table.get(".".join([name, *modifiers[:-1]])) if kind in TYPES else None
    if name == "cvta":  # generic, global and local addresses are all the host's
        rule = ("T", "T", "a")
    elif name == "setp" and len(modifiers) == 2:
        known = COMPARISONS | UNORDERED if kind == "f32" else COMPARISONS
        rule = ("pred", "T T", "a < b || a > b" if opcode == "setp.ne.f32" else known[modifiers[0]])
    elif name == "cvt":
        rule = _conversion(opcode, modifiers)
    if rule is None or len(rule[1].split()) != len(operands) - 1:
        raise NotTranslated(opcode)
    return _computed(f, rule, kind, operands)


def _computed(f: Function, rule: tuple[str, str, str], kind: str, operands: list[str]) -> str:
    kinds = {"T": kind, "W": WIDE.get(kind, "")}
    result, *given = (kinds.get(k, k) for k in [rule[0], *rule[1].split()])
    code = ""
    for letter, operand, k in zip("abcd", operands[1:], given, strict=False):
        code += f"const {TYPES[k]} {letter} = {_value(f, operand, k)}; "
    expression = re.sub(r"\bW\b", TYPES.get(kinds["W"], ""), rule[2])
    return code + _set(operands[0], result, f"({TYPES[result]})({expression})")


def _conversion(opcode: str, modifiers: list[str]) -> tuple[str, str, str] | None:
    to, source = modifiers[-2:]
    if opcode in TO_FLOAT:
        return "f32", source, TO_FLOAT[opcode]
    if opcode == "cvt.rn.f16.f32":
        return "u16", "f32", "half_bits_of(a)"
    if opcode == "cvt.rn.f16x2.f32":  # the first operand goes to the upper half
        return "u32", "f32 f32", "(uint32_t)half_bits_of(b) | (uint32_t)half_bits_of(a) << 16"
    if source == "f32" and modifiers[0] == "rzi":
        return to, "f32", f"towards_zero<{TYPES[to]}>(a)"
    if to == "f32" and modifiers[0] == "rn" and source != "f16":
        return "f32", source, "a"
    return (to, source, "a") if len(modifiers) == 2 and "f" not in to[0] + source[0] else None


# ---- instructions of a shape of their own ----------------------------------------------------------------------------


def _move(f: Function, opcode: str, modifiers: list[str], operands: list[str]) -> str:
    """mov between a register and the parts of it."""
    to, source = operands
    if not (to.startswith("{") or source.startswith("{")):
        return ""
    whole, part = {"b32": ("u32", "u16"), "b64": ("u64", "u32")}[modifiers[-1]]
    bits = 16 if whole == "u32" else 32
    if to.startswith("{"):
        low, high = _listed(to)
        code = f"const {TYPES[whole]} a = {_value(f, source, whole)}; "
        return code + _set(low, part, f"({TYPES[part]})a") + _set(high, part, f"({TYPES[part]})(a >> {bits})")
    low, high = (f"({TYPES[whole]}){_value(f, o, part)}" for o in _listed(source))
    return _set(to, whole, f"{low} | {high} << {bits}")


def _memory(f: Function, opcode: str, modifiers: list[str], operands: list[str]) -> str:
    kind, space = modifiers[-1], modifiers[0]
    where, listed = (operands[1], operands[0]) if opcode.startswith("ld") else operands[:2]
    registers, size = _listed(listed), int(re.sub(r"\D", "", kind)) // 8
    code = f"unsigned char* p = {space}_memory({_address(f, where)}, {size * len(registers)}); "
    for i, register in enumerate(registers):
        place = f"*({TYPES[kind]}*)(p + {i * size})"
        code += _set(register, kind, place) if opcode.startswith("ld") else f"{place} = {_value(f, register, kind)};"
    return code


def _atomic(f: Function, opcode: str, modifiers: list[str], operands: list[str]) -> str:
    kind, what = modifiers[-1], modifiers[1]
    to, (where, listed) = (operands[0] if opcode.startswith("atom") else ""), operands[-2:]
    registers, size = _listed(listed), int(re.sub(r"\D", "", kind)) // 8
    code = f"unsigned char* p = global_memory({_address(f, where)}, {size * len(registers)}); "
    for i, register in enumerate(registers):
        new = {"add": "old + x", "max": "old > x ? old : x"}[what]
        code += f"{{ {TYPES[kind]} &at = *({TYPES[kind]}*)(p + {i * size}); const {TYPES[kind]} old = at; "
        code += f"const {TYPES[kind]} x = {_value(f, register, kind)}; at = {new}; "
        code += (_set(to, kind, "old") if to and to != "_" else "") + "}"
    return code


def _warp(f: Function, opcode: str, modifiers: list[str], operands: list[str]) -> str:
    if opcode == "bar.sync" and operands == ["0"]:
        return "sync_block();"
    if opcode == "bar.warp.sync" and operands == ["-1"]:
        return "sync_warp_all();"
    if opcode == "shfl.sync.idx.b32":
        a, lane, clamp, mask = (_value(f, o, "u32") for o in operands[1:])
        return _set(operands[0].split("|")[0], "u32", f"shuffled({a}, {lane}, {clamp}, {mask})")
    if opcode == "vote.sync.ballot.b32":
        return _set(operands[0], "u32", f"voted({_value(f, operands[1], 'pred')}, {_value(f, operands[2], 'u32')})")
    if opcode == "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16":
        code = f"uint32_t out[4]; load_matrices({_address(f, operands[1])}, out); "
        return code + "".join(_set(r, "u32", f"out[{i}]") for i, r in enumerate(_listed(operands[0])))
    if re.fullmatch(r"mma\.sync\.aligned\.m16n8k(16|8)\.row\.col\.f32\.f16\.f16\.f32", opcode):
        d, a, b, c = (_listed(o) for o in operands)
        a, b = (a + ["0"] * (4 - len(a))), (b + ["0"] * (2 - len(b)))  # k = 8: the upper half of k = 16 is zero
        numbers = [", ".join(_value(f, o, kind) for o in os) for os, kind in ((a, "u32"), (b, "u32"), (c, "f32"))]
        code = f"const uint32_t a[4] = {{{numbers[0]}}}, b[2] = {{{numbers[1]}}}; float c[4] = {{{numbers[2]}}}; "
        return code + "mma_all(c, a, b); " + "".join(_set(r, "f32", f"c[{i}]") for i, r in enumerate(d))
    return ""


def _flow(f: Function, opcode: str, modifiers: list[str], operands: list[str]) -> str:
    if opcode.startswith("bra"):
        return f"goto {_label(operands[0])};"
    if opcode in ("ret", "exit"):
        return "return;"
    returned, name, given = operands
    return f"run_{name}({', '.join([returned.strip('() '), *_split(given.strip('()'))])});"


SHAPED = {"mov": _move, "ld": _memory, "st": _memory, "red": _atomic, "atom": _atomic}
SHAPED |= dict.fromkeys(("bar", "shfl", "vote", "ldmatrix", "mma"), _warp)
SHAPED |= dict.fromkeys(("bra", "ret", "exit", "call"), _flow)
