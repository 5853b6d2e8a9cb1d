"""PTX as C++: every instruction becomes one statement, so that the code nvcc made can be run on a CPU.

Only what the kernels use is known; anything else raises, so that nothing is run as something that it is not.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

PRELUDE = """
#include <cmath>
#include <cstdint>
#include <cstring>
#include "llcf_round.h"
bool ptx_access(int64_t address, int64_t bytes, bool write);
namespace {
template <class To, class From> To bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "reinterpreted");
  To y;
  std::memcpy(&y, &x, sizeof(y));
  return y;
}
template <class T> T load(uint64_t a) {
  T x;
  std::memcpy(&x, reinterpret_cast<const void*>(a), sizeof(x));
  return x;
}
template <class T> void store(uint64_t a, T x) {
  std::memcpy(reinterpret_cast<void*>(a), &x, sizeof(x));
}
uint32_t prmt(uint32_t a, uint32_t b, uint32_t s) {
  const uint64_t both = (uint64_t)b << 32 | a;
  uint32_t d = 0;
  for (int i = 0; i < 4; ++i) d |= (uint32_t)((both >> (8 * ((s >> (4 * i)) & 7))) & 0xff) << (8 * i);
  return d;
}
// A device makes one NaN only, other than a CPU's: it is positive, and every bit below its sign is set.
float made(float x) { return x == x ? x : bits<float>(0x7fffffffu); }
uint32_t dp4a(uint32_t a, uint32_t b, uint32_t c) {
  for (int i = 0; i < 32; i += 8) c += (a >> i & 0xff) * (b >> i & 0xff);
  return c;
}
uint32_t dp2a_lo(uint32_t a, uint32_t b, uint32_t c) {
  return c + (a & 0xffff) * (b & 0xff) + (a >> 16) * (b >> 8 & 0xff);
}
uint64_t bfi(uint64_t a, uint64_t b, uint32_t at, uint32_t n) {
  const uint64_t mask = (n >= 64 ? ~0ull : (1ull << n) - 1) << at;
  return (b & ~mask) | ((a << at) & mask);
}
}  // namespace
"""

ARGUMENTS = "const void* params, uint32_t block, uint32_t blocks, uint32_t thread"
CALL = "params, block, blocks, thread"
SIZES = {"8": 1, "16": 2, "32": 4, "64": 8}
COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
INFIX = {"add": "+", "sub": "-", "and": "&", "or": "|", "xor": "^", "div": "/"}
FLOATS = {"f32": "float", "f64": "double"}
REGISTERS = {"pred": "bool", "b16": "uint16_t", "b32": "uint32_t", "b64": "uint64_t"} | FLOATS
PLACES = {"%ctaid.x": "block", "%nctaid.x": "blocks", "%tid.x": "thread"}


def library(csrc: Path, folder: Path) -> str:
    """C++ of the kernels of csrc/cuda that do not sum, compiled with the project's flags: ptx_step and ptx_normal."""
    flags = re.findall(
        r"--(?:fmad|ftz|prec-div|prec-sqrt)=\w+", (csrc / "cuda" / "CMakeLists.txt").read_text()
    )
    includes = [f"-I{csrc / name}" for name in ("", "include", "cuda")]
    parts, cases, normal = [PRELUDE], [], ""
    samplers = (csrc / "include" / "llcf_samplers.h").read_text()
    codes = re.findall(r"X\((\w+)\)", re.search(r"define LLCF_SAMPLERS\(X\)(.*)", samplers)[1])  # type: ignore[index]
    for source in ("step", "normal"):
        out = folder / f"{source}.ptx"
        command = ["nvcc", "-arch=sm_90", "-std=c++17", "-O3", *flags, *includes, "-ptx"]
        subprocess.run([*command, str(csrc / "cuda" / f"{source}.cu"), "-o", str(out)], check=True)
        pieces = re.split(r"\.entry\s+(\w+)", out.read_text())
        for i, (symbol, text) in enumerate(zip(pieces[1::2], pieces[2::2], strict=True)):
            name = f"{source}_{i}"
            variant = re.search(r"VariantINS_\d+(\w+?)ELi(\d)ELb0ELi(n?\d+)ELi(n?\d+)E", symbol)
            if variant:
                values = codes.index(variant[1]), *(int(v.replace("n", "-")) for v in variant.groups()[1:])
                names = ("sampler", "storage", "terms", "noise")
                known = " && ".join(f"{n} == {v}" for n, v in zip(names, values, strict=True))
                cases.append(f"  if ({known}) return {name}({CALL}), true;")
            elif "normal_kernel" in symbol:
                normal = name
            else:
                continue
            parts.append(translate(text, name))
    parts.append(f"bool ptx_step(int sampler, int storage, int terms, int noise, {ARGUMENTS}) {{")
    parts += [*cases, "  return false;", "}"]
    parts.append(f"void ptx_normal({ARGUMENTS}) {{ {normal}({CALL}); }}\n")
    return "\n".join(parts)


def translate(ptx: str, name: str) -> str:
    """A C++ function of the entry function whose symbol came just before `ptx`."""
    head, body = ptx[: ptx.index("{")], ptx[ptx.index("{") + 1 : ptx.index("\n}")]
    offset = 0
    for kind, parameter, size in re.findall(r"\.param\s(?:\.align \d+ )?\.(\w+) (\w+)(?:\[(\d+)\])?", head):
        body = re.sub(rf"\[{parameter}\b", f"[{offset}", body)
        offset += -(-int(size or SIZES[kind[1:]]) // 8) * 8
    body = re.sub(r"//.*", "", body)
    body = re.sub(r"(\$\w+):", r"\1:;", body)
    lines = [f"static void {name}({ARGUMENTS}) {{"]
    lines.append("  (void)params; (void)block; (void)blocks; (void)thread;")
    for statement in re.split(r";", body):
        lines += ["  " + line for line in _statement(statement.strip())]
    return "\n".join([*lines, "}", ""])


def _statement(text: str) -> list[str]:
    if not text or text.startswith(".pragma"):
        return []
    label = re.fullmatch(r"\$(\w+):", text)
    if label:
        return [f"{label[1]}:;"]
    registers = re.fullmatch(r"\.reg \.(\w+)\s+%(\w+)<(\d+)>", text)
    if registers:
        kind, stem, n = registers.groups()
        names = ", ".join(f"{stem}{i} = 0" for i in range(int(n)))
        return [f"{REGISTERS[kind]} {names};"]
    guard = ""
    guarded = re.match(r"@(!?)%(\w+)\s+(.*)", text, re.S)
    if guarded:
        guard, text = f"if ({guarded[1]}{guarded[2]}) ", guarded[3]
    op, _, rest = text.partition(" ") if " " in text else text.partition("\t")
    operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", rest)
    return [guard + "{ " + _action(op.split("."), operands) + " }"]


def _value(operand: str, kind: str = "") -> str:
    """An operand read as a type such as u32, s64 or f32."""
    if operand in PLACES:
        return PLACES[operand]
    if operand.startswith("0f"):
        return f"bits<float>(0x{operand[2:]}u)"
    name = operand.removeprefix("%")
    if not operand.startswith("%"):
        name = f"{name}ll"
    if kind[:1] in ("u", "s", "b") and kind[1:] in SIZES:
        sign = "" if kind[0] == "s" else "u"
        return f"(({sign}int{kind[1:]}_t){name})"
    return name


def _address(operand: str) -> str:
    base, _, offset = operand.strip("[]").partition("+")
    return f"{_value(base)} + ({offset or 0})"


def _action(op: list[str], o: list[str]) -> str:
    name, kind = op[0], op[-1]
    target = o[0].removeprefix("%") if o else ""
    if name == "ret":
        return "return;"
    if name == "bra":
        return f"goto {o[0].removeprefix('$')};"
    if name == "ld" and op[1] == "param":
        return _load(op, o[0], f"(uint64_t)params + {o[1].strip('[]')}", checked=False)
    if name == "ld" and op[1] == "global":
        return _load(op, o[0], _address(o[1]), checked=True)
    if name == "st" and op[1] == "global":
        parts = o[1].strip("{}").replace(",", " ").split()
        size = SIZES[kind[1:]]
        stores = "".join(f"store(a + {i * size}, {_value(p, kind)}); " for i, p in enumerate(parts))
        access = f"ptx_access((int64_t)a, {size * len(parts)}, true)"
        return f"const uint64_t a = {_address(o[0])}; if ({access}) {{ {stores} }}"
    return f"{target} = {_expression(name, op, kind, o[1:], o[0])};"


def _load(op: list[str], into: str, address: str, *, checked: bool) -> str:
    kind = op[-1]
    size = SIZES[kind[1:]]
    ctype = FLOATS.get(kind) or f"{'' if kind[0] == 's' else 'u'}int{kind[1:]}_t"
    parts = into.strip("{}").replace(",", " ").split()
    access = f"if (ptx_access((int64_t)a, {size * len(parts)}, false)) " if checked else ""
    loads = "".join(f"{p.removeprefix('%')} = load<{ctype}>(a + {i * size}); " for i, p in enumerate(parts))
    return f"const uint64_t a = {address}; {access}{{ {loads} }}"


def _expression(name: str, op: list[str], kind: str, o: list[str], target: str) -> str:
    """The right-hand side of an instruction with one result."""
    v = [_value(x, kind) for x in o]
    rounded = op[1:] == ["rn", "f32"]
    if name == "mov":
        mixed = {target[1:2], o[0][1:2]} == {"f", "r"} and o[0] not in PLACES
        if mixed:
            return f"bits<{'float' if target[1] == 'f' else 'uint32_t'}>({_value(o[0])})"
        return v[0]
    if name == "cvta":
        return v[0]
    if name == "sqrt" and rounded:
        return f"made(std::sqrt({v[0]}))"
    if name == "rcp" and rounded:
        return f"made(1.0f / {v[0]})"
    if name == "neg" and op[1:] == ["f32"]:
        return f"-{v[0]}"
    if name == "cvt" and "f16" in ".".join(op):
        return _half(op[1:], o)
    if name in ("add", "sub", "mul", "div") and rounded:
        return f"made({v[0]} {'*' if name == 'mul' else INFIX[name]} {v[1]})"
    if "f32" not in op or name in ("setp", "selp", "slct", "cvt"):
        if name in INFIX and len(op) == 2:
            if kind == "pred":
                return f"{v[0]} {INFIX[name]} {v[1]}"
            return f"{v[0]} {INFIX[name]} {v[1]}" if kind[0] != "s" else _wrapping(INFIX[name], o, kind)
        if name == "not":
            return f"{'!' if kind == 'pred' else '~'}{v[0]}"
        if name in ("shl", "shr"):
            return f"{v[0]} {'<<' if name == 'shl' else '>>'} {_value(o[1], 'u32')}"
        if name == "mul" and op[1] == "lo":
            return _wrapping("*", o, kind)
        if name == "mad" and op[1] == "lo":
            return f"{_wrapping('*', o[:2], kind)} + {_value(o[2], 'u' + kind[1:])}"
        if name == "mul" and op[1:] == ["wide", "u32"]:
            return f"(uint64_t){v[0]} * {v[1]}"
        if name == "mul" and op[1:] == ["hi", "u32"]:
            return f"(uint32_t)(((uint64_t){v[0]} * {v[1]}) >> 32)"
        if name == "setp" and op[1] == "num":
            return f"!std::isnan({v[0]}) && !std::isnan({v[1]})"
        if name == "setp":
            return f"{v[0]} {COMPARE[op[1]]} {v[1]}"
        if name == "selp":
            return f"{_value(o[2])} ? {v[0]} : {v[1]}"
        if name == "slct" and op[1:] == ["f32", "s32"]:
            return f"{_value(o[2], 's32')} >= 0 ? {_value(o[0])} : {_value(o[1])}"
        if name == "prmt":
            return f"prmt({', '.join(v)})"
        if name == "bfi":
            return f"bfi({v[0]}, {v[1]}, {o[2]}, {o[3]})"
        if name == "cvt" and op[1:] in (["rn", "f32", "s32"], ["rn", "f32", "f64"]):
            return f"(float){v[0]}"
        if name == "min" and op[1:] == ["s32"]:
            return f"{v[0]} < {v[1]} ? {v[0]} : {v[1]}"
        if ".".join(op) in ("dp4a.u32.u32", "dp2a.lo.u32.u32"):
            return f"{'_'.join(op[:-2])}({', '.join(v)})"
        if name == "neg" and kind == "s32":
            return f"0u - {_value(o[0], 'u32')}"
        if name == "cvt" and len(op) == 3 and "f" not in op[1] + op[2]:
            return f"({'' if op[1][0] == 's' else 'u'}int{op[1][1:]}_t){v[0]}"
    raise NotImplementedError(f"{'.'.join(op)} {target}, {', '.join(o)}")


def _half(types: list[str], o: list[str]) -> str:
    """Conversions from and to fp16."""
    halves = [f"llcf::float_to_half({_value(x)})" for x in o]
    if types == ["f32", "f16"]:
        return f"llcf::half_to_float({_value(o[0], 'u16')})"
    if types == ["rn", "f16", "f32"]:
        return halves[0]
    if types == ["rn", "f16x2", "f32"]:
        return f"(uint32_t){halves[0]} << 16 | {halves[1]}"
    raise NotImplementedError(f"cvt.{'.'.join(types)}")


def _wrapping(operator: str, o: list[str], kind: str) -> str:
    """Signed arithmetic, which wraps in PTX, on unsigned integers."""
    a, b = (_value(x, "u" + kind[1:]) for x in o)
    return f"{a} {operator} {b}"
