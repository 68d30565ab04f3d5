# SPDX-License-Identifier: Apache-2.0
"""Sinks: overlay video, label maps, statistics and pictures of labelled frames."""
