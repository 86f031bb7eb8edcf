"""The log of services: mode would name it after the module of each class, as if it were ours.

Their coming and going is Faust's, and said at the level at which Faust is heard (`pipeline.log`).
"""

import logging

SERVICE_LOG = logging.getLogger("faust.services")
