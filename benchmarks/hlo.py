"""What a compiled program does on one device: matrix products and collectives.

Counted in XLA's own text of the program, `compiled.as_text()`, which is that of one
device. Loops count as often as they run (known_trip_count, which XLA notes where a
loop's bounds are constant, as those of lax.scan are), computations as often as they are
called.
"""

import collections
import dataclasses
import math
import re

COLLECTIVES = (
    'all-gather',
    'reduce-scatter',
    'all-reduce',
    'all-to-all',
    'collective-permute',
)

_BITS = re.compile(r'[a-z]+(\d+)')  # of f32, s8, bf16, f8e4m3fn
_ARRAY = re.compile(r'(\w+)\[([\d,]*)\]')
_INSTRUCTION = re.compile(r'\s+(ROOT )?%?(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*)')
_COMPUTATION = re.compile(r'(ENTRY )?%?(\S+) \(.*\{$')
_NAME = re.compile(r'%([\w.-]+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')

# What leaves the values of an array as they are.
_MOVES = ('bitcast', 'copy', 'reshape', 'transpose', 'slice', 'dynamic-slice')


@dataclasses.dataclass(frozen=True)
class Collective:
    """An exchange between devices.

    Attributes:
      kind: of COLLECTIVES.
      devices: those that exchange with each other.
      size: bytes on each device, before or after it, whichever are more.
    """

    kind: str
    devices: int
    size: int

    @property
    def sent(self) -> int:
        """Bytes that each device sends, to its neighbour in a ring or to all."""
        if self.kind == 'collective-permute':
            return self.size
        passes = 2 if self.kind == 'all-reduce' else 1
        return passes * self.size * (self.devices - 1) // self.devices


@dataclasses.dataclass(frozen=True)
class Counts:
    """What is done on one device.

    Attributes:
      operations: floating-point operations of matrix products, two for each
        multiplication with its addition.
      traffic: bytes of the operands and results of matrix products.
      collectives: how often each exchange is done.
      open_loops: loops with any of these that do not say how often they run, and count
        as if they did once.
    """

    operations: int = 0
    traffic: int = 0
    collectives: collections.Counter[Collective] = dataclasses.field(
        default_factory=collections.Counter
    )
    open_loops: int = 0

    def __add__(self, other: 'Counts') -> 'Counts':
        return Counts(
            self.operations + other.operations,
            self.traffic + other.traffic,
            self.collectives + other.collectives,
            self.open_loops + other.open_loops,
        )

    def times(self, number: int) -> 'Counts':
        collectives = {c: number * n for c, n in self.collectives.items()}
        return Counts(
            number * self.operations,
            number * self.traffic,
            collections.Counter(collectives),
            self.open_loops,
        )

    @property
    def sent(self) -> int:
        """Bytes that each device sends."""
        return sum(n * c.sent for c, n in self.collectives.items())


def count(text: str) -> Counts:
    """What a compiled program does, from its text. Of a conditional the branch with
    the most operations counts.

    CPUs neither multiply nor exchange numbers of bfloat16, and XLA makes them float32
    before; they count with the two bytes that they have on an accelerator.
    """
    return _Program(text).counts()


@dataclasses.dataclass(frozen=True)
class _Array:
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        bits = _BITS.match(self.dtype)  # none in pred
        return math.prod(self.shape) * (int(bits[1]) if bits else 8) // 8


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    opcode: str
    results: tuple[_Array, ...]
    arguments: str
    attributes: str
    within: str  # the computation

    @property
    def size(self) -> int:
        """Bytes of the results."""
        return sum(array.size for array in self.results)

    def called(self, *names: str) -> list[str]:
        """The computations that attributes of these names call."""
        found = []
        for name in names:
            match = re.search(rf'\b{name}=(\{{.*?\}}|%[\w.-]+)', self.attributes)
            found += _NAME.findall(match[1]) if match else []
        return found


class _Program:
    def __init__(self, text: str) -> None:
        self._computations: dict[str, dict[str, _Instruction]] = {}
        self._roots: dict[str, _Instruction] = {}
        self._fusions: dict[str, _Instruction] = {}  # by what they call
        self._counted: dict[str, Counts] = {}
        self._entry = within = ''
        for line in text.splitlines():
            if found := _COMPUTATION.match(line):
                within = found[2]
                self._computations[within] = {}
                self._entry = within if found[1] else self._entry
            elif found := _INSTRUCTION.match(line):
                self._add(found, within)

    def _add(self, found: re.Match, within: str) -> None:
        root, name, results, opcode, rest = found.groups()
        arrays = tuple(
            _Array(dtype, tuple(int(n) for n in shape.split(',') if n))
            for dtype, shape in _ARRAY.findall(results)
        )
        arguments, _, attributes = rest.partition(')')
        instruction = _Instruction(name, opcode, arrays, arguments, attributes, within)
        self._computations[within][name] = instruction
        if root:
            self._roots[within] = instruction
        if opcode == 'fusion':
            (called,) = instruction.called('calls')
            self._fusions[called] = instruction

    def counts(self, computation: str = '') -> Counts:
        """Of a computation, or of the one that the program begins with."""
        name = computation or self._entry
        if name not in self._counted:
            parts = map(self._counts, self._computations[name].values())
            self._counted[name] = sum(parts, start=Counts())
        return self._counted[name]

    def _counts(self, instruction: _Instruction) -> Counts:
        if instruction.opcode in COLLECTIVES:
            collective = self._collective(instruction)
            return Counts(collectives=collections.Counter([collective]))
        match instruction.opcode:
            case 'dot':
                return self._product(instruction)
            case 'fusion' | 'call':
                (name,) = instruction.called('calls', 'to_apply')
                return self.counts(name)
            case 'conditional':
                names = instruction.called(
                    'branch_computations', 'true_computation', 'false_computation'
                )
                return max(map(self.counts, names), key=lambda c: c.operations)
            case 'while':
                return self._loop(instruction)
        return Counts()

    def _loop(self, loop: _Instruction) -> Counts:
        once = self.counts(*loop.called('body'))
        if trips := _TRIPS.search(loop.attributes):
            return once.times(int(trips[1]))
        if once == Counts():
            return once
        return dataclasses.replace(once, open_loops=once.open_loops + 1)

    def _operands(self, instruction: _Instruction) -> list[_Instruction]:
        around = self._computations[instruction.within]
        return [around[name] for name in _NAME.findall(instruction.arguments)]

    def _product(self, dot: _Instruction) -> Counts:
        operands = self._operands(dot)
        shape = operands[0].results[0].shape
        contracted = re.search(r'lhs_contracting_dims=\{([\d,]+)\}', dot.attributes)
        axes = contracted[1].split(',') if contracted else ()
        sizes = (shape[int(axis)] for axis in axes)
        operations = 2 * math.prod(dot.results[0].shape) * math.prod(sizes)
        return Counts(operations, dot.size + sum(map(self._size, operands)))

    def _collective(self, instruction: _Instruction) -> Collective:
        operands = self._operands(instruction)
        before, after = sum(x.size for x in operands), instruction.size
        size = sum(map(self._size, operands)) * max(before, after) // before
        return Collective(instruction.opcode, _devices(instruction), size)

    def _size(self, instruction: _Instruction) -> int:
        """Bytes of a result, as many as on an accelerator."""
        return instruction.size // (2 if self._is_bfloat16(instruction) else 1)

    def _is_bfloat16(self, instruction: _Instruction) -> bool:
        """Whether an array of float32 was one of bfloat16 just before."""
        match instruction.opcode:
            case 'convert':
                (before,) = self._operands(instruction)
                types = before.results[0].dtype, instruction.results[0].dtype
                return types == ('bf16', 'f32')
            case 'fusion':
                (name,) = instruction.called('calls')
                return self._is_bfloat16(self._roots[name])
            case 'parameter' if caller := self._fusions.get(instruction.within):
                operand = self._operands(caller)[int(instruction.arguments)]
                return self._is_bfloat16(operand)
            case opcode if opcode in _MOVES:
                return self._is_bfloat16(self._operands(instruction)[0])
        return False


def _devices(collective: _Instruction) -> int:
    """How many exchange with each other: the size of a group."""
    text = collective.attributes
    if collective.opcode == 'collective-permute':
        return 2
    if match := re.search(r'replica_groups=\{\{([\d,]*)\}', text):
        return len(match[1].split(','))
    if match := re.search(r'replica_groups=\[\d+,(\d+)\]<=', text):
        return int(match[1])
    # A mesh of named axes, and those that a group is along, some of them in part.
    if match := re.search(r'replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}', text):
        sizes = dict(re.findall(r"('.+?')=(\d+)", match[1]))
        along = re.findall(r"('.+?')(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part or sizes[axis]) for axis, part in along)
    raise ValueError(f'{collective.name!r} has groups of devices in unknown form.')
