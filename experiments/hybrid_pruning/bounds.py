"""What an integer pass lets a decode step save, in bytes."""

from __future__ import annotations


def share_of_bytes(integer_bits: int, kept: float, pruned: float = 0.0, number_bits: int = 16) -> float:
    """Bytes that are read over those of dense attention: `(K_int + kept (K + V)) / (K + V)`.

    K_int is `integer_bits / number_bits` of K, which every head reads; a share `pruned` of heads reads
    nothing more. With 8 of 16 bits, half of K is a quarter of K and V: 0.25 + kept.
    """
    return integer_bits / number_bits / 2 + kept * (1 - pruned)


def share_read_once(integer_bits: int, kept: float, pruned: float = 0.0, number_bits: int = 16) -> float:
    """The same where what is kept need not read its integer parts again, which lie apart then."""
    read = kept * (1 - pruned)
    return integer_bits / number_bits / 2 * (1 - read) + read


def most_kept(integer_bits: int, number_bits: int = 16) -> float:
    """The share that may be kept at most for the pass to pay, in bytes: `1 - K_int / (K + V)`."""
    return 1 - integer_bits / number_bits / 2


def page_of(integer_bits: int, number_bits: int = 16) -> int:
    """Tokens of a page whose least and largest key are as many bytes as the page's integer parts.

    Two keys for each `p` tokens against `p i / b` keys: `p = 2 b / i`, 4 for 8 of 16 bits.
    """
    page, rest = divmod(2 * number_bits, integer_bits)
    if rest:
        raise ValueError(f"integer_bits: found {integer_bits}, wanted a divisor of {2 * number_bits}")
    return page
