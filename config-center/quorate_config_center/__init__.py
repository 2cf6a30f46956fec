"""Config center: versioned documents, checked before they are accepted and pushed on change; an app mounted on a node.

`ConfigCenterApp` is what a node finds by the entry-point group `quorate.apps`.
"""

from quorate_config_center.app import ConfigCenterApp

__all__ = ["ConfigCenterApp"]
