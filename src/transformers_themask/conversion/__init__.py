# SPDX-License-Identifier: Apache-2.0
"""Official checkpoints to this package's; the only home of the official names."""
