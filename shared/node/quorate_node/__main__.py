"""`python -m quorate_node`: starts one node."""

from quorate_core.logs import configure_logs
from quorate_core.process import Stop, run_process

from quorate_node.bootstrap import run_node
from quorate_node.settings import NodeSettings


async def start(stop: Stop) -> None:
    settings = NodeSettings.from_command_line("python -m quorate_node")
    configure_logs(settings.name, settings.log_format, settings.log_level)
    await run_node(settings, stop)


if __name__ == "__main__":
    run_process(start)
