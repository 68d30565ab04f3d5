# SPDX-License-Identifier: Apache-2.0
"""The demo in the browser: a page on which people segment their own videos."""
