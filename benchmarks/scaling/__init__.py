"""A study of rules that find the divisor of epsilon scaling, against an exhaustive sweep."""
