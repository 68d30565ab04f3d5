# SPDX-License-Identifier: Apache-2.0
"""Video consistency as an `evaluate` module."""
