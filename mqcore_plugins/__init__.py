"""The modules of plugins, as `mqcore_plugins.NAME`: what mqcore has loaded, by names that stay.

So what is defined in a plugin can be pickled, and is found by a process that `multiprocessing` starts: that one imports it from
the plugin's file anew, in the folders that its parent had plugins from.
"""

from mqcore.plugins._files import folders

__path__ = folders()
