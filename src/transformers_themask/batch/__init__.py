# SPDX-License-Identifier: Apache-2.0
"""Segmenting folders of videos."""
