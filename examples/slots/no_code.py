"""A filter of one's own: only thoughts without code. data.filter.names='["no_code:keep"]'"""

from tpt_megatron.config.schema import FilterConfig
from tpt_megatron.data.filters import Row


def keep(row: Row, config: FilterConfig) -> bool:
    """True keeps the row."""
    return "```" not in (row.thinking or row.text)
