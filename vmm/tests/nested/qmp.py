"""Drives a running rkvm by qemu.qmp, the client of the QEMU project.

qmp.py SOCKET SERIAL    a guest that waits for its power button, SERIAL the file of its serial port: asks, stops,
                        continues, resets, moves the balloon, and presses the button; every event must come.
qmp.py --panic SOCKET FIFO   a guest that crashes when a line comes in on FIFO: waits for GUEST_PANICKED.
"""

import asyncio
import sys
import time

from qemu.qmp import ExecuteError, QMPClient

LIMIT = 90


async def event(listener, name, **data):
    """The next event of that name; others may come before."""
    while True:
        message = await asyncio.wait_for(listener.get(), LIMIT)
        print("event", message["event"], message.get("data", ""), flush=True)
        if message["event"] == name:
            for key, value in data.items():
                assert message["data"][key] == value, message
            return message


async def written(path, text, count):
    """Waits until the serial port has shown the text so many times."""
    end = time.monotonic() + LIMIT
    while open(path, errors="replace").read().count(text) < count:
        assert time.monotonic() < end, f"no {text} on the serial port"
        await asyncio.sleep(0.2)


async def session(qmp, serial):
    with qmp.listener() as events:
        assert (await qmp.execute("query-kvm")) == {"enabled": True, "present": True}
        assert (await qmp.execute("query-status"))["status"] == "running"
        cpus = await qmp.execute("query-cpus-fast")
        assert len(cpus) == 1 and cpus[0]["thread-id"] > 0, cpus
        await qmp.execute("stop")
        await event(events, "STOP")
        assert (await qmp.execute("query-status"))["status"] == "paused"
        await qmp.execute("cont")
        await event(events, "RESUME")
        try:
            await qmp.execute("no-such-command")
            raise AssertionError("no-such-command was taken")
        except ExecuteError as e:
            assert e.error_class == "CommandNotFound", e
        await qmp.execute("balloon", {"value": 100 << 20})
        await event(events, "BALLOON_CHANGE")
        await qmp.execute("system_reset")
        await event(events, "RESET", guest=False)
        await written(serial, "L2-BUTTON-READY", 2)
        await qmp.execute("system_powerdown")
        await event(events, "POWERDOWN")
        await event(events, "SHUTDOWN", guest=True)


async def panic(qmp, fifo):
    with qmp.listener() as events:
        with open(fifo, "w") as serial:
            serial.write("\n")
        await event(events, "GUEST_PANICKED")


async def main():
    crash = sys.argv[1] == "--panic"
    path, other = sys.argv[-2:]
    qmp = QMPClient("nested")
    await asyncio.wait_for(qmp.connect(path), LIMIT)
    print("greeting", qmp.greeting.QMP.version, flush=True)
    await asyncio.wait_for((panic if crash else session)(qmp, other), 4 * LIMIT)
    try:
        await asyncio.wait_for(qmp.disconnect(), LIMIT)
    except EOFError:
        pass  # rkvm has gone first, as it should after the last event.
    print("QMP session is as it should be")


asyncio.run(main())
