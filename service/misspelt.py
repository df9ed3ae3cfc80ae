"""Variables of the environment that look like settings and are none."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from service.settings import Settings

PREFIX = "KVDEPOT_"
OTHERS = ("CONFIG", "ADDRESS")  # of commands and of engines, as are those that begin with CLIENT_
LIKENESS = 0.8  # from 0 to 1, as difflib counts it

# What Kubernetes sets in each pod for a Service whose name begins with kvdepot.
_SERVICE_LINK = re.compile(r"(.*_)?(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_SERVICE_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://.*")


def misspelt(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Each variable that is no setting, with that of the setting which is probably meant.

    Variables that are like no setting are somebody else's, and so are those of Kubernetes for a Service.
    """
    settings = [name.upper() for name in Settings.model_fields]
    known = {*settings, *OTHERS}
    for variable, value in environment.items():
        name = variable.upper().removeprefix(PREFIX)
        if not variable.upper().startswith(PREFIX) or name in known or name.startswith("CLIENT_"):
            continue
        if _SERVICE_LINK.fullmatch(name) or _SERVICE_LINK_VALUE.fullmatch(value):
            continue
        for setting in get_close_matches(name, settings, n=1, cutoff=LIKENESS):
            yield variable, PREFIX + setting
