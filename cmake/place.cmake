# Places freshly built libraries where a server can load them without an installation.
#
#   TREE=<package directory>   beside the sources of a checkout, with a file that names the interpreter to use
#   ENV=<directory>            in a virtual environment of its own, whose redisai_py is links to the checkout's and which sees the packages of
#                              the interpreter it was built with: a sanitizer build that leaves the ordinary one alone. <ENV>/redisai.so
#                              is what to load
#
# A library is replaced by rename, never written over: a running server has the old file mapped and would crash on new bytes under it. One
# that did not change keeps its file.
#
# cmake -DTREE=...|-DENV=... -DPACKAGE=<redisai_py of the checkout> -DPYTHON=<interpreter> -DVERSION=<3.11> -DPURELIB=<its packages>
#       -DLIBRARIES=<a|b> -P place.cmake

function(place_libraries directory)
  file(MAKE_DIRECTORY ${directory})
  string(REPLACE "|" ";" libraries "${LIBRARIES}")
  foreach(library ${libraries})
    get_filename_component(name ${library} NAME)
    execute_process(COMMAND ${CMAKE_COMMAND} -E compare_files ${library} ${directory}/${name}
      RESULT_VARIABLE differs OUTPUT_QUIET ERROR_QUIET)
    if(differs)
      configure_file(${library} ${directory}/.${name}.new COPYONLY)
      file(RENAME ${directory}/.${name}.new ${directory}/${name})
      message(STATUS "placed ${directory}/${name}")
    endif()
  endforeach()
endfunction()

function(link_package directory)
  file(MAKE_DIRECTORY ${directory})
  file(GLOB sources RELATIVE ${PACKAGE} ${PACKAGE}/*)
  list(FILTER sources EXCLUDE REGEX "(\\.so|\\.python|__pycache__)$")
  foreach(source ${sources})
    file(CREATE_LINK ${PACKAGE}/${source} ${directory}/${source} SYMBOLIC)
  endforeach()
endfunction()

if(TREE)
  place_libraries(${TREE})
  file(WRITE ${TREE}/.redisai.python.new "${PYTHON}\n")
  file(RENAME ${TREE}/.redisai.python.new ${TREE}/redisai.python)
endif()

if(ENV)
  set(packages ${ENV}/lib/python${VERSION}/site-packages)
  if(NOT EXISTS ${packages})
    execute_process(COMMAND ${PYTHON} -m venv --without-pip ${ENV} RESULT_VARIABLE failed)
    if(failed)
      message(FATAL_ERROR "could not make the environment ${ENV}")
    endif()
  endif()
  file(WRITE ${packages}/base.pth "${PURELIB}\n")
  link_package(${packages}/redisai_py)
  place_libraries(${packages}/redisai_py)
  file(CREATE_LINK ${packages}/redisai_py/redisai.so ${ENV}/redisai.so SYMBOLIC)
endif()
