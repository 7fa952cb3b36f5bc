"""`cllm4rec app`: a page in the browser to look at one model, or at several side by side."""

from __future__ import annotations

import logging
import sys

from modeling_cllm4rec.commands.addresses import address_family
from modeling_cllm4rec.commands.command_line import CommandParser
from modeling_cllm4rec.commands.model_flags import add_device_arguments, placement
from modeling_cllm4rec.core.console_log import hide_loading_bars, show_log
from modeling_cllm4rec.core.errors import RunError
from modeling_cllm4rec.core.optional_packages import require

EPILOG = """example:
  cllm4rec app --model runs/beauty
  cllm4rec app --model runs/beauty --model runs/beauty-lcrec --port 8000
  cllm4rec app --model runs/beauty --items items.parquet --images image_url

Stop it with Ctrl-C. Models side by side need one catalogue: both trained on the same data folder.
"""


def parser() -> CommandParser:
    """Return the parser of the command's flags."""
    flags = CommandParser(
        "app",
        description="Open a page in the browser: find items, compose a history or take a known user, and look at what the models "
        "recommend and why.",
        epilog=EPILOG,
    )
    flags.add_argument(
        "--model", dest="models", action="append", required=True, help="folder or Hub name; repeat it for a second model"
    )
    flags.add_argument("--items", help="table (Parquet, CSV, JSON lines) with item_id, for prices and pictures")
    flags.add_argument(
        "--images",
        help="column of --items with the address of a picture; the browser then asks its host for it (default: no pictures)",
    )
    flags.add_argument("--prices", help="numeric column of --items (default: price, if there is one)")
    flags.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)")
    flags.add_argument("--port", type=int, help="port (default: the first free one from 7860)")
    flags.add_argument("--open", action="store_true", help="open the page in the browser")
    add_device_arguments(flags)
    return flags


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = parser()
    arguments = flags.parse_args(argv)
    show_log(logging.WARNING)

    def work() -> None:
        require("gradio", "app", "app")
        from modeling_cllm4rec.app.answers import ShownModels
        from modeling_cllm4rec.app.page import build_page, launch

        hide_loading_bars()
        address_family(arguments.host, arguments.port or 0)
        columns = {"items": arguments.items, "images": arguments.images, "prices": arguments.prices}
        models = ShownModels.load(arguments.models, **columns, **placement(arguments))
        page = build_page(models)
        where = {"server_name": arguments.host, "server_port": arguments.port, "inbrowser": arguments.open}
        try:
            # Without `quiet` it offers to share the page.
            _, address, _ = launch(page, models.columns.image_hosts, **where, quiet=True, prevent_thread_lock=True)
        except OSError as error:  # gradio found no free port
            raise RunError(f"port: cannot listen on {arguments.host} ({error}); choose another port or host") from error
        print(f"{', '.join(arguments.models)} on {address} (Ctrl-C ends it)", flush=True)
        page.block_thread()

    return flags.run(arguments, work)


if __name__ == "__main__":
    sys.exit(main())
