"""Which site's model spoke: the routing in the report, as a picture (experts x layers) and in plain words.

E = experts, L = layers.
"""

from __future__ import annotations

from html import escape

from ayni_export.reported import printable
from ayni_export.routed.record import Adaptation, RoutedInfo
from ayni_export.routed.words import reasons, unchecked, verdict

WIDTH, ROW, NAMES, SHARES = 800, 26, 200, 64  # of the picture, in its own units: what names and shares take
MAX_NAME_LETTERS = 26


def routing_section(info: RoutedInfo, adaptation: Adaptation) -> str:
    """A section of the page; every text that is not ours is escaped."""
    said = "\n".join(f"<li>{escape(printable(sentence))}</li>" for sentence in reasons(info, adaptation))
    return f"""<section>
<h2>Which site's model spoke</h2>
<p class="spoke">{escape(printable(verdict(info, adaptation)))}</p>
<p class="meaning">{unchecked(adaptation)}</p>
<figure class="routing">
{routing_svg(info, adaptation)}
<figcaption>A row for each expert, a column for each of the {len(info.layers)} layers of the network, from the \
{info.what} on the left to the answer on the right. The darker, the more that site's model has to say in that \
layer.</figcaption>
</figure>
<ul class="why">
{said}
</ul>
</section>
"""


def routing_svg(info: RoutedInfo, adaptation: Adaptation) -> str:
    """[E] rows of [L] cells, with names and mean shares beside them."""
    num_layers, height = len(info.layers), ROW * len(info.experts)
    cell = (WIDTH - NAMES - SHARES) / num_layers
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(printable(verdict(info, adaptation)))}">'
    ]
    for e, (name, share) in enumerate(zip(info.names, adaptation.weights, strict=True)):
        top, middle = e * ROW + 2, e * ROW + ROW * 0.68
        parts.append(f'<text x="0" y="{middle:.1f}">{escape(_short(name))}</text>')
        for number, (layer, row) in enumerate(zip(info.layers, adaptation.routing, strict=True)):
            parts.append(
                f'<rect x="{NAMES + number * cell:.2f}" y="{top}" width="{cell:.2f}" height="{ROW - 4}" '
                f'fill="{shade(row[e])}"><title>{escape(printable(layer))}: {100 * row[e]:.1f} %</title></rect>'
            )
        parts.append(f'<text x="{WIDTH}" y="{middle:.1f}" text-anchor="end">{100 * share:.0f} %</text>')
    return "\n".join([*parts, "</svg>"])


def shade(share: float) -> str:
    """White for nothing to the accent's dark green for all.

    >>> shade(0), shade(1)
    ('rgb(238 242 241)', 'rgb(16 84 81)')
    """
    nothing, everything = (238, 242, 241), (16, 84, 81)
    red, green, blue = (round(low + share * (high - low)) for low, high in zip(nothing, everything, strict=True))
    return f"rgb({red} {green} {blue})"


def routed_facts(routed: RoutedInfo) -> dict[str, str]:
    """What the page says of the model beside who made it, in place of one site's figures."""
    sites = ", ".join(f"{expert.site} ({expert.num_train} {routed.what}s)" for expert in routed.experts[1:])
    return {
        "Trained on": f"the federation's {routed.what}s, which never left their sites. Experts: the global model"
        + (f", and those of the sites that agreed to share one: {sites}" if sites else " alone"),
        "Checked on": f"no {routed.what}: the sites' own figures hold neither for a mixture of their models nor for "
        "this place",
        "Mixing": f"in each of {len(routed.layers)} layers the weights of the experts are added up by their shares. "
        f"The experts are stored with {'16' if routed.form == 'fp16' else '32'} bits",
    }


def _short(name: str) -> str:
    text = printable(name)
    return text if len(text) <= MAX_NAME_LETTERS else text[: MAX_NAME_LETTERS - 1] + "…"
