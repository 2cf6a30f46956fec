"""Config center: versioned documents, validated and pushed on change; an app mounted on a node."""
