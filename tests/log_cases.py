"""Readers of the files of loggers, without TensorBoard and without a network."""

import json
import struct
import time

from vagram_jax.storage import files

_BLOCK = 32_768  # of wandb's files, which have the format of LevelDB's log


def events(path):
    """The events of an event file of TensorBoard."""
    from tensorboardX.proto import event_pb2

    data, position = path.read_bytes(), 0
    while position < len(data):
        (size,) = struct.unpack_from("<Q", data, position)
        start = position + 12
        yield event_pb2.Event.FromString(data[start : start + size])
        position = start + size + 4


def wandb_records(path):
    """The records of a file of wandb, which its own process may still be writing."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        records = list(_wandb_records(path.read_bytes()))
        if records and records[-1].WhichOneof("record_type") == "exit":
            break
        time.sleep(0.05)
    return records


def _wandb_records(data):
    from wandb.proto import wandb_internal_pb2

    position, record = 7, b""
    while position < len(data):
        left = _BLOCK - position % _BLOCK
        if left < 7:
            position += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def read_tensorboard(run, seed):
    """Steps and numbers by name in the one event file of a seed, in their order."""
    (path,) = (run / "tensorboard" / f"seed{seed}").iterdir()
    rows = []
    for event in events(path):
        values = {v.tag: v.simple_value for v in event.summary.value}
        if "config/text_summary" not in values and values:
            rows.append((event.step, values))
    return rows


def read_wandb(run, seed):
    """Steps and numbers by name in the one file of wandb of a seed, in their order."""
    (path,) = (run / "wandb" / f"seed{seed}").glob("wandb/*/*.wandb")
    rows = []
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "history":
            items = {
                item.key or ".".join(item.nested_key): float(
                    json.loads(item.value_json)
                )
                for item in record.history.item
            }
            own = {
                n: v for n, v in items.items() if n not in ("_timestamp", "_runtime")
            }
            rows.append((own.pop("_step"), own))
    return rows


READERS = {"tensorboard": read_tensorboard, "wandb": read_wandb}


def expected(run, seed):
    """What a log of a seed must contain, from the tables."""
    steps = {}
    for table, prefix in (("metrics.csv", ""), ("model.csv", "model/")):
        path = run / table
        for row in files.read_rows(path) if path.exists() else ():
            if row.pop("seed") == seed:
                values = steps.setdefault(row.pop("env_steps"), {})
                numbers = {
                    n: v for n, v in row.items() if not isinstance(v, str | None)
                }
                values |= {prefix + name: value for name, value in numbers.items()}
    return sorted(steps.items())


def assert_follows(run, name, seeds):
    """The logs of some seeds have the numbers of the tables, each step once."""
    for seed in seeds:
        logged, rows = READERS[name](run, seed), expected(run, seed)
        assert [step for step, _ in logged] == [step for step, _ in rows]
        for (_, values), (step, numbers) in zip(logged, rows, strict=True):
            assert values.keys() == numbers.keys()
            for column, number in numbers.items():
                error = abs(values[column] - number)
                # An event file has 32-bit numbers; NaN differs from itself.
                assert not error > 1e-6 * abs(number), (step, column)
                assert (values[column] != values[column]) == (number != number)
