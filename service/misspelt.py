"""Finds environment variables that look like misspelt settings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from service.settings import Settings

PREFIX = "KVDEPOT_"
NO_SETTINGS = ("CONFIG", "ADDRESS")  # variables of commands and engines, as are all that begin with CLIENT_
SIMILARITY = 0.8  # difflib's ratio, from 0 to 1

# Kubernetes sets these variables in each pod for a Service whose name begins with kvdepot.
_SERVICE_LINK = re.compile(r"(.*_)?(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_SERVICE_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://.*")


def misspelt(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each variable that is similar to a setting, with the variable that is probably meant.

    Variables that Kubernetes sets for a Service are left out.
    """
    settings = [name.upper() for name in Settings.model_fields]
    known = {*settings, *NO_SETTINGS}
    for variable, value in environment.items():
        name = variable.upper().removeprefix(PREFIX)
        if not variable.upper().startswith(PREFIX) or name in known or name.startswith("CLIENT_"):
            continue
        if _SERVICE_LINK.fullmatch(name) or _SERVICE_LINK_VALUE.fullmatch(value):
            continue
        for setting in get_close_matches(name, settings, n=1, cutoff=SIMILARITY):
            yield variable, PREFIX + setting
