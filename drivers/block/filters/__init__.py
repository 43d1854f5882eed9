# SPDX-License-Identifier: MIT
"""The filters: one module for each; `chain` puts them in front of a store."""
