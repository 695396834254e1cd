from collections import Counter
from typing import final

from .._histogram import Histogram

@final
class SmtpCounters:
    @property
    def accepted(self) -> dict[str, int]: ...
    @property
    def transactions(self) -> Histogram: ...
    @property
    def refused(self) -> Counter[str]: ...
    @property
    def logins(self) -> Counter[str]: ...
    @property
    def handshakes(self) -> Counter[tuple[str, str]]: ...
