# SPDX-License-Identifier: Apache-2.0
"""What a study shows: tables of comparison, pictures, and its page."""
