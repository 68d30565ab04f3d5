# SPDX-License-Identifier: Apache-2.0
"""Colours and pictures: palettes, overlays, legends, heat maps."""
