"""How the processes of a training job meet, agree and end together.

::

    place        a process's number in its job, and the address where the processes meet
    coordinator  passes messages between the processes and detects lost ones; runs in process 0
    group        ProcessGroup: the whole job, as one of its processes sees it
    termination  turns SIGTERM, SIGUSR1, SIGHUP and Ctrl-C into a request to stop and an exit code
"""
