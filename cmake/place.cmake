# Places freshly built libraries in a package directory, so that a server can load them from there.
#
# 1. A library is replaced by rename, never written over: a running server has the old file mapped, and would crash on new bytes under it.
# 2. A library that did not change keeps its file, so nothing that watches it stirs.
# 3. A directory that is not the checkout's own package becomes a copy of it made of links: a sanitizer build is a whole package of its
#    own and leaves the ordinary one alone.
#
# cmake -DTREE=<package directory> -DPACKAGE=<redisai_py of the checkout> -DPYTHON=<interpreter> -DLIBRARIES=<a|b> -P place.cmake

file(MAKE_DIRECTORY ${TREE})
get_filename_component(tree ${TREE} REALPATH)
get_filename_component(package ${PACKAGE} REALPATH)

if(NOT tree STREQUAL package)
  file(GLOB sources RELATIVE ${package} ${package}/*)
  list(FILTER sources EXCLUDE REGEX "(\\.so|\\.python|__pycache__)$")
  foreach(source ${sources})
    file(CREATE_LINK ${package}/${source} ${tree}/${source} SYMBOLIC)
  endforeach()
endif()

string(REPLACE "|" ";" libraries "${LIBRARIES}")
foreach(library ${libraries})
  get_filename_component(name ${library} NAME)
  execute_process(COMMAND ${CMAKE_COMMAND} -E compare_files ${library} ${tree}/${name} RESULT_VARIABLE differs OUTPUT_QUIET ERROR_QUIET)
  if(differs)
    configure_file(${library} ${tree}/.${name}.new COPYONLY)
    file(RENAME ${tree}/.${name}.new ${tree}/${name})
    message(STATUS "placed ${tree}/${name}")
  endif()
endforeach()

# interp.c reads this where the library does not lie in an environment's site-packages.
file(WRITE ${tree}/.redisai.python.new "${PYTHON}\n")
file(RENAME ${tree}/.redisai.python.new ${tree}/redisai.python)
