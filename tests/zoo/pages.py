"""What a page in a browser shows."""

import re

LAPTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def lines(page, charts):
    """The visible lines of some charts, by what reading them out calls them."""
    found = page.locator(f"{charts} .chart").evaluate_all(
        """nodes => nodes.flatMap(node => node.content.lines
             .filter(line => !node.hiddenKeys.has(line.name))
             .map(({hovered, x, y, error}) => ({name: hovered, x: [...x], y: [...y],
                    error: error ? [...error] : null})))"""
    )
    return {line["name"]: line for line in found}


def select(page, named, **option):
    """Choose in a list; its label's text has those of its options behind it."""
    labels = page.locator("label", has_text=re.compile(rf"^\s*{named}"))
    labels.locator("select").filter(visible=True).first.select_option(**option)


def texts_of(page, selector):
    return page.locator(selector).all_text_contents()


def numbers_in(text):
    found = re.findall(r"[−+-]?\d[\d,]*\.?\d*(?:e[-+−]\d+)?", text)
    return [float(each.replace("−", "-").replace(",", "")) for each in found]
