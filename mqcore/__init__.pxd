# What other Cython code may `cimport`: see docs/cython.md. All else in the .pxd files is for mqcore itself.

from ._cfunction cimport HookFunction, c_hook
from ._context cimport Context, Hold, give_back
from ._dispatcher cimport Dispatcher
from ._hook cimport Hook
from ._message cimport TO_COMPLETE, TO_CONTINUE, TO_FAIL, TO_RETRY, Message, StepCounts
