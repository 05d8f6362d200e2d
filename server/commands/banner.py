"""What `draftline serve` prints when its model is there, in 80 columns."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from engine.interface.info import EngineInfo

if TYPE_CHECKING:
    from server.serving import ServedModel


@dataclass(frozen=True, kw_only=True)
class Address:
    """How to reach the server."""

    url: str
    curl: str = "curl"  # with what else it needs, as --unix-socket
    needs_key: bool = False


def print_banner(console: Console, model: "ServedModel", address: Address) -> None:
    """Print what is served, on what, how much fits, and a command to try it."""
    console.print(f"[bold]{escape(model.name)}[/bold]  {escape(model.description)}")
    if model.engine.info is not None:
        _print_engine(console, model.engine.info)
    if model.attention is not None:
        console.print(f"attention {mebibytes(model.attention.num_bytes)} of weights again, to show it")
    console.print(f"serving   {address.url}/v1  (API: {address.url}/docs)")
    console.print(f"[bold]open[/bold]      {address.url} in a browser")
    console.print("\n[dim]try:[/dim]")
    console.print(_curl_command(address), markup=False, soft_wrap=True)


def _print_engine(console: Console, info: EngineInfo) -> None:
    num_tokens = info.num_kv_blocks * info.block_size
    num_requests = num_tokens / info.max_model_len
    console.print(f"device    {escape(info.device)}, {info.num_threads} threads, kernels {info.kernels}")
    console.print(f"weights   {info.dtype}, {mebibytes(info.weight_bytes)}")
    console.print(f"KV cache  {info.kv_cache_dtype}, {mebibytes(info.kv_cache_bytes)}: {num_tokens:,} tokens")
    console.print(f"          or {num_requests:,.1f} requests of {info.max_model_len:,} tokens at once")
    console.print(f"numerics  {describe_numerics(info)}")
    with_draft = f", draft model {escape(info.draft_model)}" if info.draft_model else ""
    promise = "answers stay the same" if info.numerics == "bitwise" else "the same up to rounding"
    console.print(f"guessing  {info.speculation}{with_draft}: {promise}")


def describe_numerics(info: EngineInfo) -> str:
    """Say what is promised of answers, for people."""
    if info.numerics == "bitwise":
        return "bitwise: the same tokens alone and in any batch"
    return f"tolerance: {escape(info.numerics_reason or 'the reason is not known')}"


def _curl_command(address: Address) -> str:
    """Return a command that can be pasted: its lines end with a backslash."""
    lines = [f"{address.curl} -N {address.url}/v1/completions"]
    if address.needs_key:
        lines.append('-H "Authorization: Bearer $KEY"')
    lines.append("-H 'Content-Type: application/json'")
    lines.append('-d \'{"prompt": "The capital of France is", "max_tokens": 32, "stream": true}\'\n')
    return " \\\n".join([lines[0], *(f"  {line}" for line in lines[1:])])


def mebibytes(num_bytes: int) -> str:
    """Return a size for people."""
    return f"{num_bytes / 2**20:,.0f} MiB"
