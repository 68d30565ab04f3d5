# SPDX-License-Identifier: Apache-2.0
"""Licence ids of the Hub, which `ModelCard.validate` checks only online."""

import difflib

# https://huggingface.co/docs/hub/repositories-licenses, without those of single language models.
LICENSE_IDS = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0
    bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0
    cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
    cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl
    ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c
    ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr unknown other
    """.split()  # noqa: SIM905 (one line of text, not seventy of code)
)


def check_license(argument: str, license_id: str) -> None:
    """Raise a `ValueError` that names `argument` unless `license_id` is a licence id of the Hub."""
    if license_id in LICENSE_IDS:
        return
    similar = difflib.get_close_matches(license_id.lower(), sorted(LICENSE_IDS), n=1)
    remedy = f"Did you mean {similar[0]}?" if similar else "Use `other` for a licence that the Hub has no id for."
    raise ValueError(f"`{argument}` must be a licence id of the Hub, such as apache-2.0. Got {license_id!r}. {remedy}")
