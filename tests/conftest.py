"""Examples of property tests have no deadline: their time says more of the machine than of the code."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile("cumulet", deadline=None)
hypothesis.settings.load_profile("cumulet")
