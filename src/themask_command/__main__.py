# SPDX-License-Identifier: Apache-2.0
"""`python -m themask_command`: the same as `themask`."""

import sys

from . import main

sys.exit(main())
